"""``bigmodel compress``: make a checkpoint smaller and faster, by one method or by a search over all of them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.arguments.options import RunOptions
from bigmodel_cli.commands.arguments.recipe_layers import checkpoint_recipe
from bigmodel_cli.commands.arguments.signatures import takes_options
from bigmodel_cli.commands.arguments.unused_options import refuse_unused
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.compression import draw, show_method, show_search, size
from bigmodel_cli.core.current_step import current_step
from bigmodel_cli.core.errors import BigmodelError, InputError, MachineError
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.files.drafts import is_temporary, remove_own, require_no_link
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from bigmodel_cli.compress.search import Goal
    from bigmodel_cli.compress.trial import Point
    from bigmodel_cli.core.registry import Entry
    from bigmodel_cli.engine.build.load import TrainedModel

UNITS = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9}
METHOD_FILES = ("point.json", "cut.pt", "tuned.pt", "model.pt", "run", "export")
"""What a method writes in its folder, finished or interrupted."""
SEARCH_FILES = ("search.json", "frontier.json", "frontier.png", "report.html", "chosen", "chosen.pt", "tries")


def _methods(incomplete: str) -> list[str]:
    from bigmodel_cli.core.registry import compressions

    return ["int8", *compressions.matching(incomplete, start=True)]


MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help=f"Compression method: {opt.listed('compressions', 9)}",
        autocompletion=_methods,
    ),
]
TargetSize = Annotated[
    str | None, typer.Option("--target-size", metavar="SIZE", help="Search: largest acceptable size, such as 2MB.")
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop", metavar="POINTS", min=0, help="Search: largest acceptable drop of val accuracy, in points."
    ),
]
Epochs = Annotated[
    int, typer.Option("--epochs", metavar="N", min=0, help="Search: epochs of fine-tuning after each pruning.")
]
LearningRate = Annotated[
    float, typer.Option("--lr", metavar="RATE", min=0, help="Search: learning rate of that fine-tuning.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder to write.  [default: compressed-<method>, beside CKPT]",
    ),
]


Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Set an option of the method (compress.ratio=0.5) or a recipe field; repeatable.",
    ),
]


def _died(given: Mapping[str, Any], child: int, signal_name: str) -> BigmodelError | None:
    """What the parent does after its child has died: in a search, go on without the try that the child was at."""
    from bigmodel_cli.core.current_step import clear_step, read_step
    from bigmodel_cli.export.publish import remove_leftovers

    step = read_step()
    clear_step()
    if not step or given["method"] is not None:
        if step:
            remove_leftovers(Path(step))
        what = f"{given['method'] or 'compress'}: its process was ended by {signal_name}"
        cause = "out of memory, or a fault in the runtime" if signal_name == "SIGKILL" else "a fault in the runtime"
        raise MachineError(what, cause, "another --method; the checkpoint is unchanged")
    from bigmodel_cli.compress.candidate_files import record_death

    remove_leftovers(Path(step))
    record_death(Path(step), signal_name)
    console.note(f"{Path(step).name}: its process was ended by {signal_name}; going on without it")
    return None


@commands.register(order=110, died=_died)
@takes_options("compress")
def compress(
    *,
    checkpoint: opt.Checkpoint,
    method: MethodName = None,
    target_size: TargetSize = None,
    max_drop: MaxDrop = None,
    epochs: Epochs = 1,
    lr: LearningRate = 1e-3,
    options: RunOptions,
    assignments: Set = None,
    out: Out = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier compression in --out.")] = False,
    json: opt.Json = False,
) -> None:
    """Make a checkpoint smaller and faster, by one --method or by a search (--target-size, --max-drop).

    Calibration and fine-tuning use the training split, every choice uses the validation split;
    the test split is never read. Run a search again to continue it.

    Examples:

        bigmodel compress runs/resnet18-digits-1 --method int8

        bigmodel compress ckpt.pt --method prune --set compress.ratio=0.5

        bigmodel compress ckpt.pt --max-drop 0.5
    """
    if (method is None) == (target_size is None and max_drop is None):
        what = "nothing to do" if method is None else "--method together with a search"
        raise InputError(what, "expected --method, or --target-size and --max-drop", "bigmodel compress --help")
    from bigmodel_cli.engine.build.load import load_trained
    from bigmodel_cli.export.folder import is_export

    if is_export(checkpoint):
        raise InputError(f"{checkpoint}: an export", "expected the checkpoint that it was exported from")
    trained = load_trained(checkpoint)
    own = [a for a in assignments or [] if a.startswith("compress.")]
    for_recipe = RunOptions(data_dir=options.data_dir, assignments=[a for a in assignments or [] if a not in own])
    recipe = checkpoint_recipe(trained, for_recipe.flag_layers())
    if method is not None:
        refuse_unused(("epochs", "lr"), f"--method {method}", "its own options: --set compress.NAME=VALUE")
        _compress(trained, recipe, method, own, out or trained.path.parent / f"compressed-{method}", overwrite, json)
        return
    if own:
        raise InputError(f"--set {own[0]}: a search sets the options of its methods", "expected --epochs or --lr")
    from bigmodel_cli.compress.search import Goal

    goal = Goal(None if target_size is None else _bytes(target_size), max_drop)
    repair = {"epochs": epochs, "lr": lr}
    _search(trained, recipe, goal, repair, out or trained.path.parent / "compressed", overwrite, json)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([kmg]?b)", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise InputError(f"--target-size {text}", "expected a size such as 500KB or 2MB")
    return int(float(found[1]) * UNITS[found[2]])


def _display(json: bool) -> Any:
    """A context manager that shows training events; with --json only the result is printed."""

    @contextlib.contextmanager
    def display_events() -> Iterator[Any]:
        from bigmodel_cli.commands.display.progress import WaitBars, for_output

        if json:
            yield lambda event: None
            return
        with WaitBars(), for_output(False) as display:
            yield display.emit

    return display_events


def _compress(
    trained: TrainedModel, recipe: Any, method: str, own: list[str], out: Path, overwrite: bool, json: bool
) -> None:
    """Apply one method, and compare the result with its source."""
    from bigmodel_cli.compress.trial import Judge, fp32_beside
    from bigmodel_cli.compress.work import Data, Work, select_method

    entry = select_method(method, trained)
    options = _options(entry, own)
    _check_out(out, overwrite)
    out.mkdir(parents=True, exist_ok=True)
    artefact = out / ("export" if entry.meta["gives"] == "export" else "model.pt")
    data = Data(recipe, trained.task.spec)
    try:
        with current_step(str(out)):
            entry(Work(trained, recipe, data, artefact, _display(json)), **options)
    finally:
        with contextlib.suppress(OSError):  # it is empty where the method could not start
            out.rmdir()
    judge = Judge.of(trained, data)
    with current_step(str(out)):
        source, point = judge.point_of_source(), judge.point(entry.name, artefact)
        fp32 = fp32_beside(Work(trained, recipe, data, artefact, _display(json)), judge, point)
    from bigmodel_cli.compress.candidate_files import write_json

    write_json(out / "point.json", point.to_dict())
    if json:
        beside = fp32.to_dict() if fp32 else None
        console.print_json({"source": source.to_dict(), "fp32": beside, **point.to_dict()})
        return
    show_method(source, [*([fp32] if fp32 else []), point])


def _options(entry: Entry, own: list[str]) -> dict[str, Any]:
    """The method's options from ``--set compress.key=value``."""
    from pydantic import ValidationError

    from bigmodel_cli.core.resolve import explain, set_layer

    try:
        return entry.options(dict(set_layer(own).values.get("compress", {})), "compress")
    except ValidationError as error:
        listing = f"bigmodel compressions {entry.name}"
        raise explain(error, {}, "compress", entry.schema.model_fields, listing) from None


def _check_out(out: Path, overwrite: bool) -> None:
    """Require a new folder, or with `overwrite` one that compress wrote."""
    require_no_link(out)
    _remove_drafts(out)
    if _is_free(out):
        return
    if not out.is_dir() or not any((out / name).exists() for name in METHOD_FILES):
        raise InputError(f"{out}: already exists", "expected a new folder", "choose another --out")
    if (out / "point.json").exists() and not overwrite:
        raise InputError(
            f"{out}: holds a compressed model", "expected a new folder", "add --overwrite, or choose another --out"
        )
    if overwrite:
        _remove(out, METHOD_FILES)


def _remove_drafts(out: Path) -> None:
    """Remove what a killed compression left half-written in `out`."""
    from bigmodel_cli.export.publish import remove_leftovers

    if out.is_dir():
        for note in [*atomic_files.remove_temporary_files(out), *remove_leftovers(out)]:
            console.note(note)


def _is_free(out: Path) -> bool:
    """Whether there is no such folder, or nothing is in it but drafts of a killed process."""
    return not out.exists() or (out.is_dir() and all(is_temporary(path) for path in out.iterdir()))


def _remove(out: Path, names: Iterable[str]) -> None:
    """Delete what compress wrote to the folder `out`, and nothing else."""
    for name in names:
        remove_own(out / name)


def _search(
    trained: TrainedModel, recipe: Any, goal: Goal, repair: dict[str, Any], out: Path, overwrite: bool, json: bool
) -> None:
    from bigmodel_cli.compress.search import Search

    require_no_link(out)
    _remove_drafts(out)
    if not (_is_free(out) or (out / "search.json").exists()):
        raise InputError(f"{out}: already exists and is no search", "expected a new folder", "choose another --out")
    if overwrite:
        _remove(out, SEARCH_FILES)

    def report(point: Point) -> None:
        if not json:
            console.note(f"{point.name}: {size(point.bytes)}, {point.speedup:.2g}x as fast, drop {point.drop:.2f}")

    found = Search(trained, recipe, out, goal, _display(json), report, repair).run()
    values = found.to_dict()
    draw(found, values, f"{recipe.model.name} on {recipe.data.shown}", out / "frontier.png")
    if json:
        console.print_json(values)
    else:
        show_search(found, out)
    if found.chosen is None:
        nearest = goal.nearest(found.points)
        console.note(
            f"nothing meets {goal}: the closest is {nearest.name}, {size(nearest.bytes)}, drop {nearest.drop:.2f} "
            f"({nearest.path})"
        )
        raise typer.Exit(1)
