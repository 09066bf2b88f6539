"""``bigmodel eval``: how good a checkpoint is on a split, with intervals, and what it gets wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.engine.build.load import TrainedModel
    from bigmodel_cli.insight.reports import Report


def evaluate(
    checkpoint: opt.Checkpoint,
    data: opt.Data = None,
    split: Annotated[Literal["val", "test", "train"], typer.Option("--split", help="Which split.")] = "val",
    data_dir: opt.DataDir = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    batch_size: opt.BatchSize = None,
    tta: opt.Tta = False,
    wrong: Annotated[int, typer.Option("--wrong", min=0, help="How many wrong predictions to list.")] = 10,
    assignments: opt.Set = None,
    json: opt.Json = False,
) -> None:
    """Evaluate a checkpoint, each figure with its 95% interval.

    Classes: loss, top-1, top-5, calibration, each class, the confusion matrix, the wrong ones. Language models:
    perplexity, bits a byte. Translation: BLEU, chrF.

    The test split is read here and nowhere else.

    Examples:

        bigmodel eval runs/resnet18-digits-1/best.pt --split test

        bigmodel eval ckpt.pt --data mnist --json
    """
    from bigmodel_cli.commands.open_model import open_trained

    flags = {"data": data, "data_dir": data_dir, "device": device, "precision": precision}
    trained = open_trained(checkpoint)
    report, notes = _measure(trained, flags, assignments, split, batch_size, tta, wrong)
    if json:
        console.print_json({"checkpoint": str(trained.path), "split": split, "notes": notes, **report.values})
        return
    for note in notes:
        console.note(note)
    for i, (title, columns, rows, right) in enumerate(report.tables):
        shown = title if i else f"{trained.recipe.model.name}, {split} split"
        console.show(console.table(shown, columns, rows, right=right))


def _measure(
    trained: TrainedModel,
    flags: dict[str, Any],
    assignments: list[str] | None,
    split: str,
    batch_size: int | None,
    tta: bool,
    wrong: int,
) -> tuple[Report, list[str]]:
    from bigmodel_cli.commands.progress import WaitBars
    from bigmodel_cli.core.registry import reports
    from bigmodel_cli.engine.build.data import load_data, load_split
    from bigmodel_cli.engine.device.placement import choose_placement
    from bigmodel_cli.engine.device.process import configure_process
    from bigmodel_cli.engine.inference.tta import with_flip_tta
    from bigmodel_cli.engine.training.evaluate import collect

    recipe = opt.recipe_of(trained, flags, assignments)
    placement = choose_placement(recipe.placement)
    configure_process(placement)
    asked = with_flip_tta(trained.model, trained.task) if tta else trained.model
    bundle = load_data(recipe.data, trained.task.spec)
    task = trained.task.for_data(bundle.spec)  # before any image is decoded: the classes may not fit
    with WaitBars():
        source = load_split(bundle, recipe.data, split)
    hows: list[str] = []

    def outputs() -> dict[str, Tensor]:
        model = placement.model(asked)
        size = batch_size or recipe.train.eval_batch_size
        out, how = collect(model, task, source, placement, size, recipe.placement.precision == "auto")
        hows.append(how)
        return out

    report = reports.get(task.report)(task, bundle.spec, source, outputs, wrong)
    hows += ["each answer is the mean over the image and its mirror image"] if tta else []
    return report, [*bundle.notes, *filter(None, hows), *report.notes]
