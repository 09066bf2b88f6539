"""``bigmodel audit``: what a model repeats or gives away of its training data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from bigmodel_cli.commands.eval_trust import Extra
    from bigmodel_cli.commands.measuring import SplitOfData

Data = Annotated[str, typer.Argument(metavar="DATA", help="The data it was trained on: a data set, or a path.")]
Checkpoint = Annotated[
    Path | None, typer.Argument(metavar="CKPT", help="Checkpoint file, or a run folder for its best.pt.")
]
Insert = Annotated[
    int | None,
    typer.Option("--insert", metavar="N", min=1, help="Plant N canaries in the text file DATA."),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Text with canaries; FILE.json lists them.")]
Canaries = Annotated[
    Path | None, typer.Option("--canaries", metavar="FILE", help="List of the canaries that the training text has.")
]
Shadows = Annotated[int, typer.Option("--shadows", metavar="N", min=4, help="Shadow models that attack a classifier.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Data folder.  [default: $BIGMODEL_DATA or ~/.cache/bigmodel]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON, one object per line.")]


@commands.register(order=66)
def audit(
    *,
    data: Data,
    checkpoint: Checkpoint = None,
    canaries: Canaries = None,
    insert: Insert = None,
    out: Out = None,
    shadows: Shadows = 16,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Look for training data that a model repeats or gives away.

    Of a language model: training text that it completes word for word, the longest pieces that its own text shares
    with the training text, beside those of text that it has not seen, and the exposure of canaries. Of a classifier:
    membership inference, as by eval --membership. Exit code 1 if it found more than chance explains, else 0.

    Examples:

        bigmodel audit notes.txt runs/gpt-notes-1

        bigmodel audit notes.txt --insert 10 --out planted.txt

        bigmodel audit planted.txt runs/gpt-planted-1 --canaries planted.txt.json

        bigmodel audit digits runs/mlp-digits-1
    """
    if insert is not None:
        _plant(data, insert, out)
        return
    if checkpoint is None:
        raise InputError("audit: no checkpoint named", "expected CKPT", "bigmodel audit DATA CKPT")
    found = _audit(data, checkpoint, canaries, shadows, data_dir)
    if json:
        console.print_json({"checkpoint": str(checkpoint), **{e.key: e.values for e in found}, "found": _any(found)})
    else:
        for extra in found:
            for note in extra.notes:
                console.note(note)
            for title, columns, rows, right in extra.tables:
                console.show(console.table(title, columns, rows, right=right))
        console.say("it gives away training data" if _any(found) else "nothing found beyond chance")
    if _any(found):
        raise typer.Exit(1)


def _any(found: list[Extra]) -> bool:
    return any(extra.values["found"] for extra in found)


def _plant(data: str, count: int, out: Path | None) -> None:
    from bigmodel_cli.commands.audit_text import plant

    if out is None:
        raise InputError("--insert without --out", "expected a file for the text with the canaries")
    listed = plant(Path(data), count, out)
    console.say(f"{count} canaries in {out}; listed in {listed}")
    console.say(f"next: bigmodel train gpt --data {out}; bigmodel audit {out} RUN --canaries {listed}")


def _audit(data: str, checkpoint: Path, canaries: Path | None, shadows: int, data_dir: Path | None) -> list[Extra]:
    from bigmodel_cli.commands.audit_text import audit_text
    from bigmodel_cli.commands.eval_membership import membership
    from bigmodel_cli.commands.eval_trust import Evaluation
    from bigmodel_cli.commands.measuring import open_split
    from bigmodel_cli.commands.open_model import open_trained
    from bigmodel_cli.commands.recipe_layers import checkpoint_recipe, resolve_data_path
    from bigmodel_cli.core.resolve import Layer
    from bigmodel_cli.core.tasks import Classifies, Generates

    trained = open_trained(checkpoint)
    folder = {} if data_dir is None else {"dir": str(data_dir)}
    layer = Layer("DATA", {"data": {**(resolve_data_path(data) or {"name": data}), **folder}})
    measured: SplitOfData = open_split(trained, checkpoint_recipe(trained, [layer]), "val")
    if isinstance(measured.task, Generates):
        return audit_text(measured, canaries)
    if not isinstance(measured.task, Classifies):
        what = f"audit of {measured.task.name.replace('_', ' ')}"
        raise InputError(what, "expected a language model or a classifier")
    extra = membership(Evaluation(measured, {}, trained.recipe.train.eval_batch_size, False), shadows)
    auc: Any = extra.values["attacks"]["lira"]["auc"]
    extra.values["found"] = auc["low"] > 0.5
    return [extra]
