"""``bigmodel export``: a folder that other programs run, verified against the checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.arguments.options import RunOptions
from bigmodel_cli.commands.arguments.recipe_layers import checkpoint_recipe
from bigmodel_cli.commands.arguments.signatures import takes_options
from bigmodel_cli.commands.arguments.usage_errors import DERIVED_FORMATS, derived_format
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.current_step import current_step
from bigmodel_cli.core.errors import BigmodelError, MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.registry import Entry, commands
from bigmodel_cli.metrics.reading import format_interval

if TYPE_CHECKING:
    from bigmodel_cli.core.tasks import Task
    from bigmodel_cli.core.types import Spec
    from bigmodel_cli.engine.build.load import TrainedModel
    from bigmodel_cli.export.proof import Proof
    from bigmodel_cli.export.subject import Subject

USERS_AT_ONCE = 4096
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help=f"{opt.listed('exports', 20)}  [default: onnx; pt2 where onnx is not installed]",
        autocompletion=opt.complete("exports"),
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder to write.  [default: <name of CKPT>-<format>, beside it]",
    ),
]
Samples = Annotated[
    int, typer.Option("--samples", metavar="N", min=1, help="Validation samples to compare the two models on.")
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        "--tolerance",
        metavar="X",
        min=0,
        help="Largest allowed difference of a logit.  [default: the format's]",
    ),
]
Seconds = Annotated[
    float, typer.Option("--seconds", metavar="S", min=0, help="How long to time each model at each batch size.")
]
Preprocessing = Annotated[
    bool, typer.Option("--with-preprocessing", help="Include resizing and normalization: the model takes uint8 images.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Set an option of the format (export.opset=20) or a recipe field; repeatable.",
    ),
]


def _died(given: Mapping[str, Any], child: int, signal_name: str) -> BigmodelError:
    """The error for a child that died, of which no draft is left."""
    from bigmodel_cli.core.current_step import read_step
    from bigmodel_cli.export.publish import remove_leftovers

    if step := read_step():
        remove_leftovers(Path(step).parent)
    what = f"--format {given['format_name'] or 'onnx'}: its process was ended by {signal_name}"
    cause = "out of memory, or a fault in the runtime" if signal_name == "SIGKILL" else "a fault in the runtime"
    return MachineError(what, cause, "another --format; nothing was written")


@commands.register(order=100, died=_died)
@takes_options("export")
def export(
    *,
    checkpoint: opt.Checkpoint,
    format_name: Format = None,
    out: Out = None,
    samples: Samples = 256,
    tolerance: Tolerance = None,
    seconds: Seconds = 1.0,
    with_preprocessing: Preprocessing = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the export in --out.")] = False,
    pretrained: opt.Pretrained = False,
    options: RunOptions,
    assignments: Set = None,
    json: opt.Json = False,
) -> None:
    """Export a checkpoint, and verify that the export gives the same outputs on real inputs.

    Writes a folder with the model, its class names and preprocessing, an example that runs it
    without bigmodel, a model card and the comparison.

    Examples:

        bigmodel export runs/resnet18-digits-1/best.pt --format onnx

        bigmodel export ckpt.pt --format openvino --out shipped
    """
    from bigmodel_cli.commands.arguments.open_model import open_checkpoint
    from bigmodel_cli.export.proof import prove
    from bigmodel_cli.export.publish import check_target

    entry = find_format(format_name or _default_format(json))
    own, assignments = _split(assignments)
    format_options = _options(entry, own)
    trained = open_checkpoint(checkpoint, pretrained, options.data_dir)
    beside = Path(str(checkpoint).replace(":", "-")) if pretrained else trained.path
    path = out or beside.with_name(f"{beside.name if pretrained else beside.stem}-{entry.name}")
    for note in check_target(path, overwrite):  # before the work
        console.note(note)
    source = replace(subject(trained, samples, options, assignments), pixels=with_preprocessing)
    with current_step(str(path)):
        proof = prove(
            source, entry.name, path, options=format_options, tolerance=tolerance, overwrite=overwrite, seconds=seconds
        )
    _tell(proof, entry, trained, json)
    if not proof.passed:
        raise typer.Exit(1)


def find_format(name: str) -> Entry:
    """The format called `name`.

    Raises:
        InputError: there is none, or another program makes it from one of ours.
    """
    from bigmodel_cli.core.registry import exports

    if exports.current(name) not in exports.found and name.lower() in DERIVED_FORMATS:
        raise derived_format(name)
    return exports.get(name)


def _default_format(quietly: bool) -> str:
    """onnx, which most runtimes take; pt2 where its packages are not installed, which torch alone writes and runs."""
    from importlib.util import find_spec

    if all(find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime")):
        return "onnx"
    if not quietly:
        console.note(f"--format pt2, which torch alone runs; for onnx, which needs no torch: {install_line('onnx')}")
    return "pt2"


def _split(assignments: list[str] | None) -> tuple[list[str], list[str]]:
    """The ``--set export.KEY=VALUE`` assignments, and those of recipe fields."""
    given = assignments or []
    own = [a for a in given if a.strip().startswith("export.")]
    return own, [a for a in given if a not in own]


def _options(entry: Any, assignments: list[str]) -> dict[str, Any]:
    """The format's options, validated against its signature.

    Raises:
        InputError: it has no such option, or the value is not valid for it.
    """
    from pydantic import ValidationError

    from bigmodel_cli.core.resolve import explain, set_layer

    values = dict(set_layer(assignments).values.get("export", {}))
    origin: dict[tuple[str, ...], str] = {("export", key): "--set" for key in values}
    try:
        return entry.options(values, "export")  # type: ignore[no-any-return]
    except ValidationError as error:
        raise explain(error, origin, "export", entry.schema.model_fields, f"bigmodel formats {entry.name}") from None


def subject(trained: TrainedModel, samples: int, options: RunOptions, assignments: list[str] | None) -> Subject:
    """What is exported: the checkpoint, with inputs from its validation split, or from that of the data given."""
    import torch

    from bigmodel_cli.engine.build.data import load_data, load_split
    from bigmodel_cli.export.subject import Subject
    from bigmodel_cli.export.val_files import val_files

    recipe = checkpoint_recipe(trained, replace(options, assignments=assignments).flag_layers())
    bundle = load_data(recipe.data, trained.task.spec, recipe.task)
    source = load_split(bundle, recipe.data, "val")
    chosen = torch.arange(min(samples, len(source)))
    model = trained.model.cpu().float().eval()
    about = {
        **trained.source_metadata(),
        "data": {"fingerprint": bundle.fingerprint, "validation samples": len(source)},
    }
    raw = [source.gather(part) for part in chosen.split(64)]
    return Subject(model, _for_any_data(trained, bundle.spec), raw, about, files=val_files(source),
                   histories=_histories(source, trained.task.spec))  # fmt: skip


def _histories(source: Any, spec: Spec) -> dict[str, Any] | None:
    """What every user of the data did, oldest first, as item numbers from 1; None for data of another kind."""
    import torch

    from bigmodel_cli.core.interactions import InteractionSpec
    from bigmodel_cli.core.sources import HistorySource

    if not isinstance(source, HistorySource) or not isinstance(spec, InteractionSpec):
        return None
    parts = [source.known(users) for users in torch.arange(spec.users).split(USERS_AT_ONCE)]
    lengths = torch.cat([(part > 0).sum(1) for part in parts])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return {"values": torch.cat([part[part > 0] for part in parts]).int(), "offsets": offsets}


def _for_any_data(trained: TrainedModel, spec: Spec) -> Task:
    """The task for data with `spec`. Published weights are compared on any images: classes matter for accuracy only."""
    from bigmodel_cli.core.tasks import Classifies

    task = trained.task
    published = trained.recipe.start.pretrained and not trained.progress
    if published and isinstance(task, Classifies) and not set(task.spec.classes) & set(spec.classes):
        console.note("the data has no class of the model: accuracy is not measured, only agreement")
        return task.with_(label_map=(-1,) * len(spec.classes))
    return task.for_data(spec)


def _tell(proof: Proof, entry: Entry, trained: TrainedModel, json: bool) -> None:
    if json:
        console.print_json(proof.to_dict())
        return
    show(proof)
    if proof.passed and trained.task.name in servable():
        trust = "" if "check" in entry.meta else " --trust"  # the format can hold code
        console.say(f"next: bigmodel serve {shlex.quote(str(proof.path))}{trust}")


def servable() -> set[str]:
    """The tasks whose exports `bigmodel serve` answers for."""
    from bigmodel_cli.core.registry import answers, tasks

    return {name for name, found in tasks.found.items() if found.meta.get("answers") in answers.found}


def show(proof: Proof) -> None:
    """The comparison as two tables: checkpoint and export side by side, and how they differ."""
    values = proof.to_dict()
    console.show(console.table(f"{proof.format}, on {proof.inputs} validation samples", *_table(values), right=True))
    console.show(console.table(None, ("check", "found", "allowed"), _differences(proof)))
    if proof.passed:
        console.say(f"written: {proof.path}")
        return
    for line in proof.failed:
        console.note(line)
    console.note("the export's outputs differ from the checkpoint's: nothing was written")


def _differences(proof: Proof) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("largest logit difference", f"{proof.largest_difference:.2g}", f"{proof.tolerance:g}"),
        ("mean logit difference", f"{proof.mean_difference:.2g}", ""),
        ("equal predictions", f"{proof.equal_answers:.2%}", ""),
    ]
    if proof.other_sizes:
        apart, limit = (proof.other_sizes[k] for k in ("largest_difference", "tolerance"))
        rows.append((f"{proof.other_sizes['inputs']} images of other sizes", f"{apart:.2g}", f"{limit:g}"))
    for name, value in (proof.further or {}).items():
        rows.append((name, f"{value:.2%}" if isinstance(value, float) else str(value), ""))
    if proof.example:
        rows.append(("example.py, run on its own", f"{proof.example['answer']}", ""))
    return rows


def _table(values: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows: list[tuple[str, ...]] = []
    for name, ours in values["metrics"]["checkpoint"].items():
        theirs = values["metrics"]["export"][name]
        rows.append((name, format_interval(name, ours), format_interval(name, theirs)))
    rows.append(("size", *(f"{values['size'][w] / 1e6:.2f} MB" for w in ("checkpoint", "export"))))
    speed = values["speed"]
    for size in speed["checkpoint"]:
        both = [speed[w][size] for w in ("checkpoint", "export")]
        rows.append((f"batch {size}: p50", *(f"{b['p50_ms']:.2f} ms" for b in both)))
        rows.append((f"batch {size}: p95", *(f"{b['p95_ms']:.2f} ms" for b in both)))
        rows.append((f"batch {size}: per second", *(f"{b['per_second']:,.0f}" for b in both)))
    return ("", "checkpoint", "export"), rows
