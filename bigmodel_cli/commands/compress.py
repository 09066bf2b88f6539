"""``bigmodel compress``: a checkpoint made smaller and quicker, by one method or by a search over all of them."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from bigmodel_cli.compress.search import Frontier, Goal
    from bigmodel_cli.compress.trial import Point
    from bigmodel_cli.core.registry import Entry
    from bigmodel_cli.engine.build.load import TrainedModel

UNITS = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9}
OURS = ("point.json", "cut.pt", "tuned.pt", "model.pt", "run", "export")
"""What a method leaves in its folder, done or broken off."""
OURS_OF_A_SEARCH = ("search.json", "frontier.json", "frontier.png", "chosen", "chosen.pt", "tries")


def _methods(incomplete: str) -> list[str]:
    from bigmodel_cli.core.registry import compressions

    return ["int8", *compressions.matching(incomplete, start=True)]


def compress(
    checkpoint: opt.Checkpoint,
    method: Annotated[
        str | None,
        typer.Option("--method", help="int8, prune, qat, distill, bf16, int4-weights, ...", autocompletion=_methods),
    ] = None,
    target_size: Annotated[
        str | None, typer.Option("--target-size", metavar="SIZE", help="Search: at most this large, such as 2MB.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", min=0, help="Search: at most so many points of val accuracy lost.")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=0, help="Search: epochs of repair after each pruning.")] = 1,
    lr: Annotated[float, typer.Option("--lr", min=0, help="Search: learning rate of the repair.")] = 1e-3,
    data_dir: opt.DataDir = None,
    assignments: opt.Set = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write.  [default: beside CKPT]")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier compress left there.")
    ] = False,
    json: opt.Json = False,
) -> None:
    """Make a checkpoint smaller and quicker: one --method, or a search with --target-size or --max-drop.

    Calibration and repair use the train split, every choice the validation split; the test
    split stays unread. A search that is run again goes on where it stopped.

    Examples:

        bigmodel compress runs/resnet18-digits-1 --method int8

        bigmodel compress ckpt.pt --method prune --set compress.ratio=0.5

        bigmodel compress ckpt.pt --max-drop 0.5
    """
    if (method is None) == (target_size is None and max_drop is None):
        what = "nothing to aim at" if method is None else "--method together with a search"
        raise InputError(what, "expected --method, or --target-size and --max-drop", "bigmodel compress --help")
    from bigmodel_cli.engine.build.load import load_trained
    from bigmodel_cli.export.folder import is_export

    if is_export(checkpoint):
        raise InputError(f"{checkpoint}: an export", "expected the checkpoint it was made from")
    trained = load_trained(checkpoint)
    own = [a for a in assignments or [] if a.startswith("compress.")]
    rest = [a for a in assignments or [] if a not in own]
    recipe = opt.recipe_of(trained, {"data_dir": data_dir}, rest)
    if method is not None:
        _one(trained, recipe, method, own, out or trained.path.parent / f"compressed-{method}", overwrite, json)
        return
    if own:
        raise InputError(f"--set {own[0]}: a search chooses methods itself", "expected --epochs or --lr", "--method")
    from bigmodel_cli.compress.search import Goal

    goal = Goal(None if target_size is None else _bytes(target_size), max_drop)
    repair = {"epochs": epochs, "lr": lr}
    _search(trained, recipe, goal, repair, out or trained.path.parent / "compressed", overwrite, json)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([kmg]?b)", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise InputError(f"--target-size {text}", "expected a size such as 500KB or 2MB")
    return int(float(found[1]) * UNITS[found[2]])


def _events(json: bool) -> Any:
    """How training is shown; with --json only the result is printed."""

    @contextlib.contextmanager
    def shown() -> Iterator[Any]:
        from bigmodel_cli.commands.progress import WaitBars, for_output

        if json:
            yield lambda event: None
            return
        with WaitBars(), for_output(False) as display:
            yield display.emit

    return shown


def _one(
    trained: TrainedModel, recipe: Any, method: str, own: list[str], out: Path, overwrite: bool, json: bool
) -> None:
    from bigmodel_cli.compress.trial import Judge
    from bigmodel_cli.compress.work import Data, Work, fitting

    entry = fitting(method, trained)
    options = _options(entry, own)
    _free(out, overwrite)
    out.mkdir(parents=True, exist_ok=True)
    artefact = out / ("export" if entry.meta["gives"] == "export" else "model.pt")
    data = Data(recipe, trained.task.spec)
    try:
        entry(Work(trained, recipe, data, artefact, _events(json)), **options)
    finally:
        with contextlib.suppress(OSError):  # empty, where the method could not begin
            out.rmdir()
    judge = Judge.of(trained, data)
    source, point = judge.point_of_source(), judge.point(entry.name, artefact)
    from bigmodel_cli.compress.search import write_json

    write_json(out / "point.json", point.to_dict())
    if json:
        console.print_json({"source": source.to_dict(), **point.to_dict()})
        return
    console.show(_table("compressed", [source, point], set()))
    console.say(f"written {point.path}")
    console.say(f"next: bigmodel eval {point.path} --split test")


def _options(entry: Entry, own: list[str]) -> dict[str, Any]:
    """The method's options from ``--set compress.key=value``."""
    from pydantic import ValidationError

    from bigmodel_cli.core.resolve import explain, set_layer

    try:
        return entry.options(dict(set_layer(own).values.get("compress", {})), "compress")
    except ValidationError as error:
        raise explain(error, {}, "compress", entry.schema.model_fields) from None


def _free(out: Path, overwrite: bool) -> None:
    """Hold `out` to a new folder, or one of ours that may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not any((out / name).exists() for name in OURS):
        raise InputError(f"{out}: is there already", "expected a new folder", "give another --out")
    if (out / "point.json").exists() and not overwrite:
        raise InputError(f"{out}: compressed already", "expected a new folder", "--overwrite, or another --out")
    if overwrite:
        _remove(out, OURS)


def _remove(out: Path, names: Iterable[str]) -> None:
    """What compress wrote to the folder `out`; whatever else lies there stays."""
    for path in (out / name for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _search(
    trained: TrainedModel, recipe: Any, goal: Goal, repair: dict[str, Any], out: Path, overwrite: bool, json: bool
) -> None:
    from bigmodel_cli.compress.search import Search

    if out.exists() and not (out.is_dir() and ((out / "search.json").exists() or not any(out.iterdir()))):
        raise InputError(f"{out}: is there already, and no search", "expected a new folder", "give another --out")
    if overwrite:
        _remove(out, OURS_OF_A_SEARCH)

    def tell(point: Point) -> None:
        if not json:
            console.note(f"{point.name}: {_size(point.bytes)}, {point.speedup:.2g}x as fast, drop {point.drop:.2f}")

    found = Search(trained, recipe, out, goal, _events(json), tell, repair).run()
    values = found.to_dict()
    _draw(found, values, f"{recipe.model.name} on {recipe.data.name}", out / "frontier.png")
    if json:
        console.print_json(values)
    else:
        _show(found, out)
    if found.chosen is None:
        nearest = goal.nearest(found.points)
        console.note(
            f"nothing meets {goal}: the best is {nearest.name}, {_size(nearest.bytes)}, drop {nearest.drop:.2f} "
            f"({nearest.path})"
        )
        raise typer.Exit(1)


def _draw(found: Frontier, values: dict[str, Any], title: str, path: Path) -> None:
    from bigmodel_cli.core.errors import MachineError
    from bigmodel_cli.insight.frontier import draw_frontier

    chosen = found.chosen.name if found.chosen else None
    try:
        draw_frontier(title, values["source"], values["points"], chosen, path)
    except MachineError as error:  # the search is worth more than its image
        console.note(f"frontier.png is not drawn: {error.line}")


def _show(found: Frontier, out: Path) -> None:
    best = {p.name for p in found.best()}
    threads = f"{found.source.threads} thread{'s' * (found.source.threads != 1)}"
    console.show(_table("frontier on val", [found.source, *found.points], best))
    console.say(f"ms: p50 for one sample, {threads}; x1, x32: times as fast as the source for 1 and 32; * the frontier")
    for line in found.skipped:
        console.note(f"not tried: {line}")
    if found.chosen is not None:
        console.say(f"chosen {found.chosen.name}: {found.chosen.path}")
        console.say(f"next: bigmodel eval {found.chosen.path} --split test")
    console.say(f"drawn in {out / 'frontier.png'}, figures in {out / 'frontier.json'}")


def _table(title: str, points: list[Point], best: set[str]) -> Any:
    """Columns that fit 80: * marks the frontier; smaller and, at batch 1 and 32, faster are times the source's."""
    first = points[0]
    heads = ("", "MB", "smaller", "ms", "x1", "x32", first.metric, "drop")
    rows = []
    for point in points:
        faster = [f"{point.beside[b] / point.latency[b]:.1f}" for b in ("1", "32")]
        value = f"{point.value:.2%}" if point.metric.endswith("accuracy") else f"{point.value:.4g}"
        name = ("* " if point.name in best else "") + point.name
        smaller = f"{first.bytes / point.bytes:.1f}"
        size = f"{point.bytes / 1e6:.2f}"
        rows.append((name, size, smaller, f"{point.latency['1']:.2f}", *faster, value, f"{point.drop:.2f}"))
    return console.table(title, heads, rows, right=True)


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
