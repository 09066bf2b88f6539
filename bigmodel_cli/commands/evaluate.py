"""``bigmodel eval``: how good a checkpoint is on a split, with confidence intervals, and what it gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.arguments.options import RunOptions
from bigmodel_cli.commands.arguments.recipe_layers import Known, checkpoint_recipe
from bigmodel_cli.commands.arguments.signatures import takes_options
from bigmodel_cli.commands.arguments.unused_options import refuse_unused
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.pages import require_place, written
from bigmodel_cli.commands.isolation.foreign_runtime import runs_export, runtime_died
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.commands.evaluation.measuring import SplitOfData
    from bigmodel_cli.commands.evaluation.page import Found
    from bigmodel_cli.commands.evaluation.trust import TrustOptions

Split = Annotated[
    Literal["val", "test", "train", "fold"] | None,
    typer.Option("--split", help="Split; fold: held out by --folds.  [default: val, or all of other data without]"),
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

Page = Annotated[
    Path | None,
    typer.Option("--page", metavar="FILE", help="HTML page to write.  [default: beside CKPT, eval-SPLIT.html]"),
]

Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="Fit a temperature on val (temperature scaling) and keep it in CKPT.")
]
Conformal = Annotated[
    float | None,
    typer.Option("--conformal", metavar="SHARE", help="Sets of classes that hold the true one this often, as 0.9."),
]
Corruptions = Annotated[
    bool, typer.Option("--corruptions", help="Accuracy under 15 corruptions of images at 5 severities.")
]
Ood = Annotated[
    str | None,
    typer.Option("--ood", metavar="DATA", help="Other data that confidence should tell from this: AUROC, FPR95."),
]
By = Annotated[
    str | None, typer.Option("--by", metavar="COLUMN", help="Metrics for each value of a column of your table.")
]
Membership = Annotated[
    bool, typer.Option("--membership", help="Attack it with LiRA: who was in its training data? Trains shadow models.")
]
Shadows = Annotated[int, typer.Option("--shadows", metavar="N", min=4, help="Shadow models of --membership.")]


@commands.register("eval", order=60, died=runtime_died, supervised_when=runs_export)
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
    page: Page = None,
    calibrate: Calibrate = False,
    conformal: Conformal = None,
    corruptions: Corruptions = False,
    ood: Ood = None,
    by: By = None,
    membership: Membership = False,
    shadows: Shadows = 16,
    json: opt.Json = False,
) -> None:
    """Evaluate a checkpoint on a split; every metric has a 95% confidence interval.

    Classification: loss, accuracy, calibration, per-class metrics, confusion matrix, wrong predictions.
    Several labels: mean average precision, F1. Numbers: errors, R2, rank correlation. Language models:
    perplexity, bits per byte. Translation: BLEU, chrF. A page with figures and samples is written beside CKPT.

    Only this command, and compare where it is asked to, read the test split.

    Examples:

        bigmodel eval runs/resnet18-digits-1/best.pt --split test

        bigmodel eval ckpt.pt --split test --calibrate --conformal 0.9

        bigmodel eval timm:resnet18 --pretrained --data photos
    """
    from bigmodel_cli.commands.arguments.open_model import open_trained
    from bigmodel_cli.commands.evaluation.measuring import open_split
    from bigmodel_cli.commands.evaluation.trust import TrustOptions

    require_place(page)
    trained = open_trained(checkpoint, trust, pretrained=pretrained, data_dir=options.data_dir)
    recipe = checkpoint_recipe(trained, options.flag_layers(Known.of(trained.recipe.to_dict()["data"])))
    measured = open_split(trained, recipe, split)
    _check_wrong(measured.task)
    wanted = TrustOptions(calibrate, conformal, corruptions, ood, by, shadows if membership else None)
    size = batch_size or recipe.train.eval_batch_size
    found = evaluate_split(measured, wanted, size, tta, wrong, metric or [], options.data_dir)
    _report(measured, found, page, pretrained, json)


def _check_wrong(task: Any) -> None:
    """Raises InputError where ``--wrong`` was typed and the task's report lists no samples."""
    from bigmodel_cli.core.registry import reports

    if not reports.get(task.report).meta.get("lists_mistakes", True):
        refuse_unused(("wrong",), f"{task.name.replace('_', ' ')}, which is not right or wrong of a sample")


def _report(measured: SplitOfData, found: Found, page: Path | None, published: bool, json: bool) -> None:
    """Write the page and show the results, also where the page cannot be written."""
    from bigmodel_cli.commands.evaluation.page import place_of, write_page

    place = place_of(measured, page, published)
    shown, problem = written(place, page is not None, lambda path: write_page(path, measured, found))
    _show(measured, found, shown, json)
    if problem is not None:
        raise problem


def _show(measured: SplitOfData, found: Found, page: str | None, json: bool) -> None:
    trained = measured.trained
    if json:
        extras = {extra.key: extra.values for extra in found.extras}
        known = {"checkpoint": str(trained.path), "split": measured.name, "notes": found.notes, "page": page}
        console.print_json({**known, **found.report.values, **extras})
        return
    for note in found.notes:
        console.note(note)
    tables = [*found.report.tables, *(table for extra in found.extras for table in extra.tables)]
    for i, (title, columns, rows, right) in enumerate(tables):
        shown = title if i else f"{trained.recipe.model.name}, {measured.says}"
        console.show(console.table(shown, columns, rows, right=right))
    if page:
        console.note(f"page: {page}")
    console.note_next(trained.path, "export", "--out", "shipped")


def evaluate_split(
    measured: SplitOfData,
    wanted: TrustOptions,
    batch_size: int,
    tta: bool,
    wrong: int,
    extra_metrics: Sequence[str],
    data_dir: Path | None,
) -> Found:
    """The report on the split, and what else is wanted; with ``--calibrate`` the checkpoint is rewritten."""
    from bigmodel_cli.commands.evaluation import calibrate as eval_calibrate
    from bigmodel_cli.commands.evaluation.extras import measure_trust
    from bigmodel_cli.commands.evaluation.page import Found
    from bigmodel_cli.commands.evaluation.trust import Evaluation
    from bigmodel_cli.core.registry import metrics, reports

    fitted = eval_calibrate.fit(measured, batch_size, tta) if wanted.calibrate else None
    task = measured.task
    names = [*task.metrics, *(metrics.get(name).name for name in extra_metrics)]
    held: dict[str, Tensor] = {}

    def outputs() -> dict[str, Tensor]:
        held.update(measured.outputs(batch_size, tta))
        return held

    report = reports.get(task.report)(task, measured.bundle.spec, measured.source, outputs, wrong, names)
    extras = measure_trust(wanted, Evaluation(measured, held, batch_size, tta), data_dir)
    if fitted is not None:
        extras.insert(0, eval_calibrate.before_and_after(measured, held, fitted))
        eval_calibrate.keep(measured)
    notes = [*measured.bundle.notes, *measured.notes, *report.notes, *(n for e in extras for n in e.notes)]
    notes += ["test-time augmentation: predictions averaged over each image and its mirror image"] if tta else []
    return Found(report, held, extras, notes)
