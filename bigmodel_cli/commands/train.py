"""``bigmodel train``: flags to layers, a recipe, a run, and what came of it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.commands.launch import Launch
from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.core.resolve import Layer, Resolved
    from bigmodel_cli.engine.device.ranks import Ranks
    from bigmodel_cli.engine.distributed.process_group import Group
    from bigmodel_cli.engine.training.run_folder import RunFolder
    from bigmodel_cli.engine.training.session import Outcome


def train(
    model: opt.Model = None,
    data: opt.Data = None,
    recipe: opt.RecipeFile = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    optimizer: opt.Optimizer = None,
    schedule: opt.Schedule = None,
    loss: opt.Loss = None,
    balance: opt.Balance = None,
    seed: opt.Seed = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    compile: opt.Compile = None,
    channels_last: opt.ChannelsLast = None,
    max_steps: opt.MaxSteps = None,
    data_dir: opt.DataDir = None,
    assignments: opt.Set = None,
    out: opt.Out = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    profile: opt.Profile = None,
    dry_run: opt.DryRun = False,
    lr_find: Annotated[bool, typer.Option("--lr-find", help="Test learning rates, and draw the test.")] = False,
    json: opt.Json = False,
    nproc: opt.Nproc = None,
    nnodes: opt.Nnodes = None,
    rdzv: opt.Rdzv = None,
    max_restarts: opt.MaxRestarts = 0,
    timeout: opt.Timeout = None,
) -> None:
    """Train a model from zero.

    Examples:

        bigmodel train resnet18 --data digits

        bigmodel train recipes/image/mnist-cnn.yaml --epochs 3

        bigmodel train --resume --out runs/resnet18-digits-1

        bigmodel train resnet18 --data digits --nproc auto
    """
    flags = {k: v for k, v in locals().items() if k in opt.FLAGS}
    layers = opt.base_layers(model, recipe)
    if resume and not layers:
        layers = _saved_recipe(out)
    layers = opt.hub_layers([*layers, *opt.flag_layers(flags, assignments)], weights=False)
    if lr_find:
        _range_test(layers, out, json)
    else:
        launch = Launch(nproc, nnodes, rdzv, max_restarts)
        go(layers, out, resume, overwrite, dry_run, json, launch)


def _saved_recipe(out: Path | None) -> list[Layer]:
    from bigmodel_cli.core.resolve import document_layer
    from bigmodel_cli.core.strict_yaml import read_yaml

    if out is None:
        raise InputError(
            "--resume needs the run to continue", "give --out RUN", "bigmodel train --resume --out runs/..."
        )
    file = out / "recipe.yaml"
    if not file.exists():
        raise InputError(f"{out}: no run to resume", "expected its recipe.yaml", f"bigmodel train MODEL --out {out}")
    return [document_layer(read_yaml(file), str(file))]


def _range_test(layers: list[Layer], out: Path | None, json: bool) -> None:
    """``--lr-find``: a hundred steps with a climbing rate; the rate to take, and the image."""
    from bigmodel_cli.core.resolve import resolve
    from bigmodel_cli.engine.experiments.lr_range_test import lr_range_test
    from bigmodel_cli.insight.range_test import draw

    recipe = resolve(layers).recipe
    found = lr_range_test(recipe)
    folder = out or Path("runs")
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"lr-find-{recipe.model.name}-{recipe.data.name}.png".replace(":", "-")
    draw(found.rates, found.losses, found.suggested, image)
    if json:
        console.print_json({"suggested": found.suggested, "rates": found.rates, "losses": found.losses})
        return
    console.say(
        f"the loss falls fastest at --lr {found.suggested:.2g} ({len(found.rates)} steps; {recipe.optimizer.name})"
    )
    console.say(f"drawn in {image}")


def go(
    layers: list[Layer],
    out: Path | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    json: bool,
    launch: Launch = Launch(),
) -> None:
    """Resolve `layers`, then train, or with `dry_run` measure, what they say; here or in several processes."""
    from bigmodel_cli.core.resolve import resolve
    from bigmodel_cli.engine.device.ranks import read_ranks
    from bigmodel_cli.engine.training.run_folder import RunFolder

    if resume and out is None:
        raise InputError("--resume needs the run to continue", "give its folder with --out")
    resolved = resolve(layers)
    recipe = resolved.recipe
    stem = f"{recipe.model.name}-{recipe.data.name}".replace(":", "-")
    if launch.wanted:
        launch.run(out, stem, resume=resume, overwrite=overwrite, dry_run=dry_run)
        return
    here = read_ranks()
    if dry_run:
        RunFolder(out, stem, resume=resume, overwrite=overwrite)
        _dry_run(resolved, out or Path("runs"), json)
    elif here.world > 1:
        _take_part(here, recipe, out, stem, resume, overwrite, json)
    else:
        jobs = [here.job] if here.job else []
        _train(recipe, RunFolder(out, stem, resume=resume, overwrite=overwrite, jobs=jobs), json)


def _take_part(
    here: Ranks, recipe: Recipe, out: Path | None, stem: str, resume: bool, overwrite: bool, json: bool
) -> None:
    """Train as one of several processes."""
    from bigmodel_cli.engine.device.placement import process_group_backend
    from bigmodel_cli.engine.distributed.process_group import join_group, leave_group, translate_rank_errors
    from bigmodel_cli.engine.training.run_folder import Followed, RunFolder

    group = join_group(here, process_group_backend(recipe.placement.device), recipe.parallel.timeout)
    console.speak_as(here.rank, group.claim_error_report)
    with translate_rank_errors():
        jobs = sorted(set(group.gather(here.job)))
        if group.is_main:
            folder = RunFolder(out, stem, resume=resume, overwrite=overwrite, jobs=jobs)
            group.broadcast((str(folder.path), folder.resume))
        else:
            path, resumes = group.broadcast(None)
            folder = Followed(Path(path), resume=resumes)
    _train(recipe, folder, json, group)
    leave_group()


def _train(recipe: Recipe, folder: RunFolder, json: bool, group: Group | None = None) -> None:
    from bigmodel_cli.commands.progress import Silence, WaitBars, for_output
    from bigmodel_cli.engine.distributed.process_group import SINGLE_PROCESS
    from bigmodel_cli.engine.training.session import train as run

    group = group or SINGLE_PROCESS
    with WaitBars() if group.is_main else nullcontext(), for_output(json) if group.is_main else Silence() as display:
        outcome = run(recipe, folder, display.emit, group=group)
    if not group.is_main:
        return
    _write_report(recipe, outcome)
    if json:
        console.print_json(outcome.to_dict())
    else:
        show_outcome(outcome)


def _dry_run(resolved: Resolved, folder: Path, json: bool) -> None:
    from bigmodel_cli.commands.dry_run import preflight

    preflight(resolved, folder, json)


def _write_report(recipe: Recipe, outcome: Outcome) -> None:
    from bigmodel_cli.core.strict_yaml import dump_yaml
    from bigmodel_cli.insight.report import read_events, write_report

    title = f"{recipe.model.name} on {recipe.data.name}"
    events = read_events(outcome.folder / "metrics.jsonl")
    path = outcome.folder / "report.html"
    write_report(path, title=title, recipe_text=dump_yaml(recipe.to_dict()), events=events, final=outcome.to_dict())


def show_outcome(outcome: Outcome) -> None:
    """What trained, where not everything did; the result, before and after; and what to do next."""
    run = outcome.run
    if run.frozen.tensors:
        console.show(frozen_table(run))
        console.say(f"{len(run.frozen.tensors)} frozen tensors checked: byte-identical")
    if outcome.before:
        console.show(method_table(outcome))
    metrics = ", ".join(f"{k.replace('_', ' ')} {figure(k, v)}" for k, v in outcome.metrics.items())
    console.say(f"{metrics}; {run.progress.step} steps in {outcome.seconds:.1f} s")
    if run.timer.verdict():
        console.say(run.timer.verdict(), prose=True)
    console.say(f"best checkpoint {outcome.best}, report {outcome.folder / 'report.html'}")
    console.say(f"next: bigmodel eval {outcome.best}{' --split test' if 'test' in run.splits else ''}")


def figure(name: str, value: float) -> str:
    return f"{value:.2%}" if name.endswith("accuracy") else f"{value:.4g}"


def method_table(outcome: Outcome) -> Any:
    """What the method trained, what that changed on val, and how long it took."""
    from bigmodel_cli.models.quantization.nf4 import parameters

    run = outcome.run
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    total = parameters(run.model)
    rows = [
        ("method", run.recipe.start.method),
        ("parameters trained", f"{trained:,} of {total:,} ({trained / total:.2%})"),
        *(
            (name.replace("_", " "), f"{figure(name, outcome.before[name])} -> {figure(name, value)}")
            for name, value in outcome.metrics.items()
            if name in outcome.before
        ),
        ("time", f"{outcome.seconds:.1f} s"),
    ]
    return console.table("fine-tuning", ("what", "value"), rows)


def frozen_table(run: Any) -> Any:
    """What trains and what does not, parameters and buffers, by the model's top-level parts."""
    parts: dict[str, list[int]] = {}
    trainable = {name for name, p in run.model.named_parameters() if p.requires_grad}
    parameters = {name for name, _ in run.model.named_parameters()}
    for name, tensor in run.model.state_dict().items():
        counts = parts.setdefault(name.split(".")[0], [0, 0, 0, 0])
        frozen = name in run.frozen.tensors
        column = (0 if name in trainable else 1) if name in parameters else (3 if frozen else 2)
        counts[column] += tensor.numel()
    heads = ("part", "parameters trained", "parameters frozen", "buffers updated", "buffers frozen")
    rows = [(part, *(f"{n:,}" if n else "-" for n in counts)) for part, counts in parts.items()]
    totals = [sum(c[i] for c in parts.values()) for i in range(4)]
    return console.table(None, heads, [*rows, ("total", *(f"{n:,}" if n else "-" for n in totals))], right=True)
