"""``bigmodel eval``: how good a checkpoint is on a split, with confidence intervals, and what it gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.commands.options import RunOptions
from bigmodel_cli.commands.recipe_layers import checkpoint_recipe
from bigmodel_cli.commands.signatures import takes_options
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.engine.build.load import TrainedModel
    from bigmodel_cli.insight.reports import Report

Split = Annotated[
    Literal["val", "test", "train"] | None,
    typer.Option("--split", help="Split to evaluate on.  [default: val, or all of other data without splits]"),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Samples per forward pass.  [default: the checkpoint's]",
    ),
]
Metric = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="A further metric to report; repeatable.",
        autocompletion=opt.complete("metrics"),
    ),
]
Wrong = Annotated[int, typer.Option("--wrong", metavar="N", min=0, help="List N wrong predictions.")]


@commands.register("eval", order=60)
@takes_options("eval", data="the checkpoint's", device="the checkpoint's", precision="the checkpoint's")
def evaluate(
    *,
    checkpoint: opt.Checkpoint,
    split: Split = None,
    pretrained: opt.Pretrained = False,
    options: RunOptions,
    batch_size: BatchSize = None,
    tta: opt.Tta = False,
    trust: opt.Trust = False,
    metric: Metric = None,
    wrong: Wrong = 10,
    json: opt.Json = False,
) -> None:
    """Evaluate a checkpoint on a split; every metric has a 95% confidence interval.

    Classification: loss, top-1 and top-5 accuracy, calibration, per-class metrics, the confusion
    matrix and the wrong predictions. Several labels: mean average precision, F1, Hamming loss. Numbers:
    absolute and squared error, R2, rank correlation. Language models: perplexity, bits per byte.
    Translation: BLEU, chrF.

    Only this command reads the test split.

    Examples:

        bigmodel eval runs/resnet18-digits-1/best.pt --split test

        bigmodel eval ckpt.pt --data mnist --json

        bigmodel eval timm:resnet18 --pretrained --data photos
    """
    from bigmodel_cli.commands.open_model import open_trained

    trained = open_trained(checkpoint, trust, pretrained=pretrained, data_dir=options.data_dir)
    recipe = checkpoint_recipe(trained, options.flag_layers(trained.recipe.data.task))
    size = batch_size or recipe.train.eval_batch_size
    report, measured, notes = _measure(trained, recipe, split, size, tta, wrong, metric or [])
    if json:
        console.print_json({"checkpoint": str(trained.path), "split": measured, "notes": notes, **report.values})
        return
    for note in notes:
        console.note(note)
    for i, (title, columns, rows, right) in enumerate(report.tables):
        shown = title if i else f"{trained.recipe.model.name}, {_named(measured)}"
        console.show(console.table(shown, columns, rows, right=right))


def _measure(
    trained: TrainedModel,
    recipe: Recipe,
    split: str | None,
    batch_size: int,
    tta: bool,
    wrong: int,
    extra_metrics: Sequence[str],
) -> tuple[Report, str, list[str]]:
    """The report on `split`, which split that is, and what a reader of it should know."""
    from bigmodel_cli.commands.progress import WaitBars
    from bigmodel_cli.core.registry import metrics, reports
    from bigmodel_cli.engine.build.data import changed_data_note, load_data, load_split, split_to_measure
    from bigmodel_cli.engine.device.placement import choose_placement
    from bigmodel_cli.engine.device.process import configure_process
    from bigmodel_cli.engine.inference.tta import with_flip_tta
    from bigmodel_cli.engine.training.evaluate import collect

    names = [*trained.task.metrics, *(metrics.get(name).name for name in extra_metrics)]
    placement = choose_placement(recipe.placement)
    configure_process(placement)
    model = with_flip_tta(trained.model, trained.task) if tta else trained.model
    with WaitBars():
        bundle = load_data(recipe.data, trained.task.spec, recipe.task)
    task = trained.task.for_data(bundle.spec)  # before any image is decoded: the classes may not match
    saved = trained.meta.get("data") or {}
    chosen, reason = split_to_measure(bundle, recipe.data, saved) if split is None else (split, None)
    with WaitBars():
        source = load_split(bundle, recipe.data, chosen)
    carved = chosen == "val" and "val" not in bundle.load
    notes = [f"val: the {len(source):,} samples that were split off train"] if carved else []
    notes += filter(None, [reason, changed_data_note(bundle, recipe.data, saved)])

    def outputs() -> dict[str, Tensor]:
        automatic = recipe.placement.precision == "auto"
        out, how = collect(placement.model(model), task, source, placement, batch_size, automatic)
        notes.append(how)
        return out

    report = reports.get(task.report)(task, bundle.spec, source, outputs, wrong, names)
    notes += ["test-time augmentation: predictions averaged over each image and its mirror image"] if tta else []
    return report, chosen, [*bundle.notes, *filter(None, notes), *report.notes]


def _named(split: str) -> str:
    return "all samples" if split == "all" else f"{split} split"
