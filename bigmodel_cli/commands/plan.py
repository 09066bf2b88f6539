"""``bigmodel plan``: what a run would take on machines that are not here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.commands.dry_run import flops, size
from bigmodel_cli.commands.progress import duration
from bigmodel_cli.core.errors import MachineError

if TYPE_CHECKING:
    from bigmodel_cli.engine.plan.estimate import Plan
    from bigmodel_cli.engine.plan.strategies import LayoutEstimate

PARTS = ("weights", "gradients", "optimizer", "activations", "workspace")


def plan(
    model: opt.Model = None,
    data: opt.Data = None,
    recipe: opt.RecipeFile = None,
    gpus: Annotated[str, typer.Option("--gpus", help="8xA100, 64xH100, ... or cpu: this machine, measured.")] = "cpu",
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            help="single, ddp, fsdp, tp2, tp4, tp8; default the fastest that fits. Pipelines, predicted alone: "
            "pp16, 'tp8 x pp16', or with 8 chunks a stage 'tp8 x pp16x8'.",
        ),
    ] = None,
    price: Annotated[float, typer.Option("--price", min=0, help="Of one device for an hour.")] = 0.0,
    network: Annotated[
        float | None,
        typer.Option("--network", min=0.001, help="GB/s of one device to other nodes; default its table's."),
    ] = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    optimizer: opt.Optimizer = None,
    precision: opt.Precision = None,
    compile: opt.Compile = None,
    max_steps: opt.MaxSteps = None,
    data_dir: opt.DataDir = None,
    assignments: opt.Set = None,
    json: opt.Json = False,
) -> None:
    """What a run would take: memory, communication, time and cost, before any of it is spent.

    Everything follows from shapes: no weight is allocated, and nothing is trained.

    Examples:

        bigmodel plan resnet18 --data digits

        bigmodel plan gpt2-124m --data synthetic_text --gpus 8xA100 --price 2.5 --batch-size 480

        bigmodel plan resnet50 --data synthetic_pictures --gpus 16xH100 --batch-size 4096 --json
    """
    flags = {k: v for k, v in locals().items() if k in opt.FLAGS}
    from bigmodel_cli.core.resolve import resolve
    from bigmodel_cli.engine.plan.devices import parse_cluster
    from bigmodel_cli.engine.plan.estimate import make_plan

    machines = parse_cluster(gpus, network)
    wanted = resolve([*opt.base_layers(model, recipe), *opt.flag_layers(flags, assignments)]).recipe
    found = make_plan(wanted, machines, strategy, price)
    if json:
        console.print_json(found.to_dict())
    else:
        _show(found)
    if found.chosen is None:
        raise MachineError(f"{gpus}: {found.why}", f"{size(machines.device.usable)} usable", "more or larger devices")


def _show(found: Plan) -> None:
    rows = [_row(found, one) for one in found.estimates]
    heads = ("strategy", *PARTS, "total", "sent a step", "a step", "largest batch")
    console.show(console.table("memory a device, and what it costs to spread", heads, rows, right=True))
    if found.chosen is None:
        return
    one, device = found.chosen, found.cluster.device
    rate = found.units / one.step_seconds
    shares = ", ".join(f"{name} {seconds(s)}" for name, s in one.seconds.items())
    frozen = f" ({found.trained:,} train)" if found.trained != found.parameters else ""
    accumulated = f" x {one.accumulate} accumulated" if one.accumulate > 1 else ""
    facts = [
        ("parameters", f"{found.parameters:,}{frozen}"),
        ("a step", f"{found.batch:,} samples, {found.units:,} {found.unit}, {flops(found.flops)}FLOP"),
        ("strategy", f"{one.layout}: micro-batch {one.micro_batch}{accumulated}, {found.precision}"),
        ("why", found.why),
        ("memory", f"{size(one.memory.total)} of {size(device.usable)} usable a device"),
        ("step time", f"{seconds(one.step_seconds)}: {shares}"),
        ("throughput", f"{rate:,.0f} {found.unit}/s; {found.utilisation:.0%} of the peak" * bool(device.fp32)
         or f"{rate:,.0f} {found.unit}/s"),
        ("run", f"{duration(found.seconds)} for {found.steps:,} steps"),
    ]  # fmt: skip
    if not one.layout.runs:
        facts.append(("note", "predicted alone: bigmodel does not train with pipeline stages"))
    if found.price:
        hours = found.seconds / 3600 * found.cluster.count
        facts.append(("cost", f"{found.cost:,.0f} for {hours:,.1f} device hours at {found.price:g}"))
    console.show(console.table("the run", ("what", "value"), facts))


def _row(found: Plan, one: LayoutEstimate) -> tuple[str, ...]:
    parts = [size(getattr(one.memory, part)) for part in PARTS]
    if one.micro_batch == 0:
        return (str(one.layout), *parts, size(one.memory.total), "-", "does not fit", "-")
    step = seconds(one.step_seconds) if one.fits else "does not fit"
    mark = " *" * (one is found.chosen)
    largest = f"{found.largest_batch(one):,}" if one.largest_micro_batch else "-"
    return (str(one.layout) + mark, *parts, size(one.memory.total), size(one.sent), step, largest)


def seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"
