"""``bigmodel train``: the flags become a recipe, the recipe a run, and its result is shown."""

from __future__ import annotations

import re
import shlex
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.arguments.options import RunOptions
from bigmodel_cli.commands.arguments.recipe_layers import (
    Known,
    expand_hub_model,
    named_layers,
    task_in,
    with_image_size,
)
from bigmodel_cli.commands.arguments.signatures import takes_options
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.registry import commands
from bigmodel_cli.metrics.reading import format_metric

if TYPE_CHECKING:
    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.core.resolve import Layer
    from bigmodel_cli.engine.device.ranks import Ranks
    from bigmodel_cli.engine.distributed.process_group import Group
    from bigmodel_cli.engine.session.loggers import Loggers
    from bigmodel_cli.engine.session.run_folder import RunFolder
    from bigmodel_cli.engine.session.session import Outcome
    from bigmodel_cli.engine.training.run import Run

PHOTO_SIDE = 64
"""Pixels from which a colour image is taken for a photo."""
FEW_PHOTOS = 5_000


@commands.register(order=10)
@takes_options("train")
def train(
    options: RunOptions,
    lr_find: Annotated[bool, typer.Option("--lr-find", help="Run a learning-rate range test and plot it.")] = False,
) -> None:
    """Train a model from scratch.

    Examples:

        bigmodel train resnet18 --data digits

        bigmodel train recipes/image/mnist-cnn.yaml --epochs 3

        bigmodel train --resume --out runs/resnet18-digits-1

        bigmodel train resnet18 --data digits --nproc auto
    """
    named = named_layers(options.model, options.recipe)
    if options.resume and not named:
        named = saved_recipe(options.out)
    layers = expand_hub_model([*named, *options.flag_layers(Known(task_in(named)))], weights=False)
    layers = with_image_size(layers)
    if lr_find:
        _range_test(layers, options.out, options.json)
    else:
        run_training(layers, options)


def saved_recipe(out: Path | None) -> list[Layer]:
    """The recipe of the run in `out`, to resume it.

    Raises:
        InputError: there is none.
    """
    from bigmodel_cli.core.recipe import complete
    from bigmodel_cli.core.resolve import document_layer
    from bigmodel_cli.core.strict_yaml import read_yaml

    if out is None:
        raise InputError(
            "--resume: no run named", "expected --out with the run's folder", "bigmodel train --resume --out runs/..."
        )
    file = out / "recipe.yaml"
    if not file.exists():
        raise InputError(f"{out}: no run to resume", "expected a recipe.yaml", f"bigmodel train MODEL --out {out}")
    layer = document_layer(read_yaml(file), str(file))
    return [replace(layer, values=complete(layer.values))]


def _range_test(layers: list[Layer], out: Path | None, json: bool) -> None:
    """``--lr-find``: a hundred steps at a rising learning rate; print the rate to use and plot the losses."""
    from bigmodel_cli.core.resolve import resolve
    from bigmodel_cli.engine.experiments.lr_range_test import lr_range_test
    from bigmodel_cli.insight.range_test import draw

    recipe = resolve(layers).recipe
    if recipe.privacy.epsilon is not None:
        raise InputError("--lr-find with --private", "a rate that is found on the data is not accounted for")
    found = lr_range_test(recipe)
    folder = out or Path("runs")
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"lr-find-{recipe.model.name}-{recipe.data.name}.png".replace(":", "-")
    try:
        draw(found.rates, found.losses, found.suggested, image)
    except MachineError as error:
        if error.exit_code != 3 or "matplotlib" not in error.what:
            raise
        console.note(f"no plot: {error.what}; {error.hint}")
    if json:
        console.print_json({"suggested": found.suggested, "rates": found.rates, "losses": found.losses})
        return
    console.say(f"suggested: --lr {found.suggested:.2g} ({recipe.optimizer.name}, {len(found.rates)} steps)")
    if image.exists():
        console.say(f"plot: {image}")


def run_training(layers: list[Layer], options: RunOptions) -> None:
    """Resolve `layers` and train the recipe, in this process or in several; with ``--dry-run`` only measure it."""
    from bigmodel_cli.commands.training.dry_run import preflight
    from bigmodel_cli.core.resolve import resolve
    from bigmodel_cli.engine.device.ranks import read_ranks
    from bigmodel_cli.engine.session.loggers import Loggers
    from bigmodel_cli.engine.session.run_folder import RunFolder

    out, resume, overwrite, json = options.out, options.resume, options.overwrite, options.json
    loggers = Loggers(options.log or (), console.note)  # before the work: one may need a package
    if resume and out is None:
        raise InputError("--resume: no run named", "expected --out with the run's folder")
    resolved = resolve(layers)
    recipe = resolved.recipe
    stem = run_stem(recipe)
    launch = options.launch()
    if recipe.data.is_cross_validation:
        from bigmodel_cli.commands.training.folds import train_folds

        train_folds(resolved, options, stem)
        return
    if launch.requested:
        launch.run(out, stem, resume=resume, overwrite=overwrite, dry_run=options.dry_run)
        return
    here = read_ranks()
    if options.dry_run:
        RunFolder(out, stem, resume=resume, overwrite=overwrite)
        preflight(resolved, out or Path("runs"), json)
    elif here.world > 1:
        _train_as_rank(here, recipe, stem, options, loggers)
    else:
        jobs = [here.job] if here.job else []
        _train(recipe, RunFolder(out, stem, resume=resume, overwrite=overwrite, jobs=jobs, loggers=loggers), json)


def _train_as_rank(here: Ranks, recipe: Recipe, stem: str, options: RunOptions, loggers: Loggers) -> None:
    """Train as one process of several."""
    from bigmodel_cli.engine.device.placement import process_group_backend
    from bigmodel_cli.engine.distributed.process_group import join_group, leave_group, translate_rank_errors
    from bigmodel_cli.engine.session.run_folder import ReadOnlyRunFolder, RunFolder

    group = join_group(here, process_group_backend(recipe.placement.device), recipe.parallel.timeout)
    console.print_as_rank(here.rank, group.claim_error_report)
    with translate_rank_errors():
        jobs = sorted(set(group.gather(here.job)))
        if group.is_main:
            again = {"resume": options.resume, "overwrite": options.overwrite}
            folder = RunFolder(options.out, stem, **again, jobs=jobs, loggers=loggers)
            group.broadcast((str(folder.path), folder.resume))
        else:
            path, resumes = group.broadcast(None)
            folder = ReadOnlyRunFolder(Path(path), resume=resumes)
    _train(recipe, folder, options.json, group)
    leave_group()


def run_stem(recipe: Recipe) -> str:
    """The name of a run, of its model and its data; data of one's own is named after its file or folder."""
    path = recipe.data.options.get("path")
    data = re.sub(r"[^\w.-]+", "-", Path(str(path).rstrip("/")).stem).strip("-.")[:40] if path else ""
    return f"{recipe.model.name}-{data or recipe.data.name}".replace(":", "-").replace("/", "-")


def _train(recipe: Recipe, folder: RunFolder, json: bool, group: Group | None = None) -> None:
    from bigmodel_cli.commands.display.progress import Silence, WaitBars, for_output
    from bigmodel_cli.commands.training.run import train_recipe

    is_main = group is None or group.is_main
    with WaitBars() if is_main else nullcontext():
        outcome = train_recipe(recipe, folder, for_output(json) if is_main else Silence(), group)
    if not is_main:
        return
    if json:
        console.print_json(outcome.to_dict())
    else:
        show_outcome(outcome)


def show_outcome(outcome: Outcome) -> None:
    """What was trained, where some of it was frozen; the metrics, before and after; and what to type next."""
    run = outcome.run
    if run.frozen.tensors:
        console.show(frozen_table(run))
        console.say(f"{len(run.frozen.tensors)} frozen tensors verified: byte-identical")
    if outcome.before:
        console.show(method_table(outcome))
    metrics = ", ".join(f"{k.replace('_', ' ')} {format_metric(k, v)}" for k, v in outcome.metrics.items())
    console.say(f"{metrics}; {counted(run.progress.step, 'step')} in {outcome.seconds:.1f} s")
    if spent := run.gradients.spent(run):
        console.say(f"privacy: epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g}")
    if run.timer.verdict():
        console.say(run.timer.verdict(), prose=True)
    console.say(f"best checkpoint: {outcome.best}")
    console.say(f"report: {outcome.folder / 'report.html'}")
    console.say(f"next: bigmodel eval {outcome.best}{' --split test' if 'test' in run.splits else ''}")
    if command := published_start(run):
        what = "few photos to train from random weights; published weights usually get further"
        console.say(f"{what}: {shlex.join(command)}")


def published_start(run: Run) -> list[str]:
    """The command that fine-tunes published weights, where random ones met few photos of one's own."""
    recipe, spec, path = run.recipe, run.task.spec, run.recipe.data.options.get("path")
    at_random = recipe.start.checkpoint is None and not recipe.start.pretrained
    photos = spec.kind == "image" and spec.channels == 3 and min(spec.height, spec.width) >= PHOTO_SIDE
    if not (path and at_random and photos and len(run.batches.indexed_source) <= FEW_PHOTOS):
        return []
    return ["bigmodel", "finetune", "timm:tf_efficientnet_lite0", "--pretrained", "--data", str(path)]


def method_table(outcome: Outcome) -> Any:
    """The method, the parameters it trained, the metrics before and after, and the time."""
    from bigmodel_cli.models.quantization.nf4 import count_parameters

    run = outcome.run
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    total = count_parameters(run.model)
    rows = [
        ("method", run.recipe.start.method),
        ("parameters trained", f"{trained:,} of {total:,} ({trained / total:.2%})"),
        *(
            (name.replace("_", " "), f"{format_metric(name, outcome.before[name])} -> {format_metric(name, value)}")
            for name, value in outcome.metrics.items()
            if name in outcome.before
        ),
        ("time", f"{outcome.seconds:.1f} s"),
    ]
    return console.table("fine-tuning", ("", "value"), rows)


def frozen_table(run: Any) -> Any:
    """How many parameters and buffers are trained and frozen, for each top-level module."""
    modules: dict[str, list[int]] = {}
    trainable = {name for name, p in run.model.named_parameters() if p.requires_grad}
    count_parameters = {name for name, _ in run.model.named_parameters()}
    for name, tensor in run.model.state_dict().items():
        counts = modules.setdefault(name.split(".")[0], [0, 0, 0, 0])
        frozen = name in run.frozen.tensors
        column = (0 if name in trainable else 1) if name in count_parameters else (3 if frozen else 2)
        counts[column] += tensor.numel()
    heads = ("module", "parameters trained", "parameters frozen", "buffers updated", "buffers frozen")
    rows = [(module, *(f"{n:,}" if n else "-" for n in counts)) for module, counts in modules.items()]
    totals = [sum(c[i] for c in modules.values()) for i in range(4)]
    return console.table(None, heads, [*rows, ("total", *(f"{n:,}" if n else "-" for n in totals))], right=True)
