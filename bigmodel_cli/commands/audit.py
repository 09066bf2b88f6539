"""``bigmodel audit``: what a model repeats or gives away of its training data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.arguments.options import RunOptions
from bigmodel_cli.commands.arguments.signatures import takes_options
from bigmodel_cli.commands.arguments.unused_options import refuse_unused
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from bigmodel_cli.commands.evaluation.measuring import SplitOfData
    from bigmodel_cli.commands.evaluation.trust import Extra

Data = Annotated[str, typer.Argument(metavar="DATA", help="The data it was trained on: a data set, or a path.")]
Checkpoint = Annotated[
    Path | None, typer.Argument(metavar="CKPT", help="Checkpoint file, or a run folder for its best.pt.")
]
Insert = Annotated[
    int | None,
    typer.Option("--insert", metavar="N", min=1, help="Write DATA, a text file, with N canaries in it to --out."),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="That text; FILE.json lists the canaries.")]
Canaries = Annotated[
    Path | None, typer.Option("--canaries", metavar="FILE", help="List of the canaries in DATA: their exposure.")
]
Shadows = Annotated[int, typer.Option("--shadows", metavar="N", min=4, help="Shadow models that attack a classifier.")]


@commands.register(order=66)
@takes_options("audit", device="the checkpoint's")
def audit(
    *,
    given: Data,
    checkpoint: Checkpoint = None,
    pretrained: opt.Pretrained = False,
    canaries: Canaries = None,
    insert: Insert = None,
    out: Out = None,
    shadows: Shadows = 16,
    options: RunOptions,
    json: opt.Json = False,
) -> None:
    """Look for training data that a model repeats or gives away.

    Language models: passages that it completes word for word, the longest pieces that its own text shares with the
    training text, both beside text that it was not trained on, and the exposure of canaries. Classifiers: membership
    inference, as by eval --membership.

    Exit code 1 if it gives away more than chance explains (p < 0.01; of a classifier, an AUC above 0.5 with its whole
    interval), 0 if not.

    Examples:

        bigmodel audit notes.txt runs/gpt-notes-1

        bigmodel audit notes.txt --insert 8 --out planted.txt

        bigmodel audit planted.txt runs/planted --canaries planted.txt.json

        bigmodel audit digits runs/mlp-digits-1
    """
    if insert is not None:
        _plant(given, checkpoint, insert, out, json)
        return
    refuse_unused(("out",), "an audit without --insert")
    if checkpoint is None:
        raise InputError("no checkpoint", "expected CKPT after DATA", f"bigmodel audit {given} RUN")
    measured = _open(given, checkpoint, pretrained, options)
    extras = _audit(measured, canaries, shadows)
    found = any(extra.values["found"] for extra in extras)
    notes = [*measured.bundle.notes, *measured.notes, *(note for extra in extras for note in extra.notes)]
    if json:
        known = {"checkpoint": str(measured.trained.path), "found": found, "notes": notes}
        console.print_json(known | {extra.key: extra.values for extra in extras})
    else:
        _show(extras, notes, found)
    if found:
        raise typer.Exit(1)


def _show(extras: list[Extra], notes: list[str], found: bool) -> None:
    for note in notes:
        console.note(note)
    for title, columns, rows, right in (table for extra in extras for table in extra.tables):
        console.show(console.table(title, columns, rows, right=right))
    names = " and ".join(extra.key for extra in extras if extra.values["found"])
    console.say(f"it gives away training data: {names}" if found else "nothing found beyond chance")


def _plant(data: str, checkpoint: Path | None, count: int, out: Path | None, json: bool) -> None:
    from bigmodel_cli.commands.auditing.canaries import plant

    refuse_unused(("checkpoint", "pretrained", "canaries", "shadows", "data_dir", "columns", "device"), "--insert")
    if out is None:
        raise InputError("--insert without --out", "expected a file for the text with the canaries")
    listed = plant(Path(data), count, out)
    if json:
        console.print_json({"text": str(out), "canaries": str(listed), "count": count})
        return
    console.say(f"{count} canaries in {out}, listed in {listed}")
    console.say(f"next: bigmodel train gpt-nano --data {out}, then bigmodel audit {out} RUN --canaries {listed}")


def _open(data: str, checkpoint: Path, pretrained: bool, options: RunOptions) -> SplitOfData:
    """The model and the val split of `data`, whose samples are those that it was not trained on."""
    from bigmodel_cli.commands.arguments.open_model import open_checkpoint
    from bigmodel_cli.commands.arguments.recipe_layers import Known, checkpoint_recipe, resolve_data_path
    from bigmodel_cli.commands.evaluation.measuring import open_split
    from bigmodel_cli.core.resolve import Layer

    trained = open_checkpoint(checkpoint, pretrained, options.data_dir)
    known = Known.of(trained.recipe.to_dict()["data"])
    values: dict[str, Any] = resolve_data_path(data, options.columns, known) or {"name": data}
    layers = [Layer("DATA", {"data": values}), *options.flag_layers()]
    return open_split(trained, checkpoint_recipe(trained, layers), "val")


def _audit(measured: SplitOfData, canaries: Path | None, shadows: int) -> list[Extra]:
    from bigmodel_cli.commands.auditing.canaries import exposed
    from bigmodel_cli.commands.auditing.text import AuditedModel, completed, repeated
    from bigmodel_cli.commands.evaluation.membership import membership
    from bigmodel_cli.commands.evaluation.trust import Evaluation
    from bigmodel_cli.core.tasks import Classifies, Generates

    kind = measured.task.name.replace("_", " ")
    if isinstance(measured.task, Generates):
        refuse_unused(("shadows",), kind)
        model = AuditedModel.of(measured)
        listed = [] if canaries is None else [exposed(model, canaries)]
        return [completed(model), repeated(model), *listed]
    refuse_unused(("canaries",), kind)
    if not isinstance(measured.task, Classifies):
        raise InputError(f"audit: {kind}", "expected a language model, or a model with one class per sample")
    extra = membership(Evaluation(measured, {}, measured.recipe.train.eval_batch_size, False), shadows)
    extra.values["found"] = extra.values["attacks"]["lira"]["auc"]["low"] > 0.5
    return [extra]
