"""``bigmodel plan``: what a run would take, on this machine or on others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.arguments.options import RunOptions
from bigmodel_cli.commands.arguments.recipe_layers import with_image_size
from bigmodel_cli.commands.arguments.signatures import takes_options
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.progress import duration
from bigmodel_cli.commands.training.dry_run import flops, size
from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from bigmodel_cli.engine.plan.estimate import Plan
    from bigmodel_cli.engine.plan.strategies import LayoutEstimate

PARTS = ("weights", "gradients", "optimizer", "activations", "workspace")


Gpus = Annotated[
    str,
    typer.Option("--gpus", metavar="NxNAME", help="Devices: 8xA100, 64xH100, ...; cpu: this machine, measured."),
]
Strategy = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        metavar="NAME",
        help="single, ddp, fsdp, tp2, tp4, tp8. Pipelines are estimated only: pp16, 'tp8 x pp16', or with 8 chunks "
        "per stage 'tp8 x pp16x8'.  [default: the fastest that fits]",
    ),
]
Network = Annotated[
    float | None,
    typer.Option(
        "--network",
        metavar="GB/S",
        min=0.001,
        help="Bandwidth from one device to other nodes.  [default: the device's]",
    ),
]


@commands.register(order=50)
@takes_options("plan")
def plan(
    *,
    options: RunOptions,
    gpus: Gpus = "cpu",
    strategy: Strategy = None,
    price: Annotated[float, typer.Option("--price", metavar="X", min=0, help="Price of one device per hour.")] = 0.0,
    network: Network = None,
    json: opt.Json = False,
) -> None:
    """Estimate a run's memory, communication, time and cost without running it.

    Everything is computed from shapes: no weights are allocated and nothing is trained.

    Examples:

        bigmodel plan resnet18 --data digits

        bigmodel plan gpt2-124m --data synthetic_text --gpus 8xA100 --price 2.5

        bigmodel plan resnet50 --data synthetic_images --gpus 16xH100 --json
    """
    from bigmodel_cli.core.resolve import resolve
    from bigmodel_cli.engine.plan.devices import parse_cluster
    from bigmodel_cli.engine.plan.estimate import make_plan

    machines = parse_cluster(gpus, network)
    recipe = resolve(with_image_size(options.recipe_layers())).recipe
    found = make_plan(recipe, machines, strategy, price)
    if json:
        console.print_json(found.to_dict())
    else:
        _show(found)
    if found.chosen is None:
        raise MachineError(
            f"{gpus}: {found.why}", f"{size(machines.device.usable)} usable", "use more or larger devices"
        )


def _show(found: Plan) -> None:
    rows = [_row(found, one) for one in found.estimates]
    heads = ("strategy", *PARTS, "total", "sent per step", "step time", "largest batch")
    console.show(console.table("memory per device, and communication", heads, rows, right=True))
    if found.chosen is None:
        return
    one, device = found.chosen, found.cluster.device
    rate = found.units / one.step_seconds
    shares = ", ".join(f"{name} {seconds(s)}" for name, s in one.seconds.items())
    frozen = f" ({found.trained:,} trained)" if found.trained != found.parameters else ""
    accumulated = f" x {one.accumulate} accumulated" if one.accumulate > 1 else ""
    facts = [
        ("parameters", f"{found.parameters:,}{frozen}"),
        ("step", f"{found.batch:,} samples, {found.units:,} {found.unit}, {flops(found.flops)}FLOP"),
        ("strategy", f"{one.layout}: micro-batch {one.micro_batch}{accumulated}, {found.precision}"),
        ("why", found.why),
        ("memory", f"{size(one.memory.total)} of {size(device.usable)} usable per device"),
        ("step time", f"{seconds(one.step_seconds)}: {shares}"),
        ("throughput", f"{rate:,.0f} {found.unit}/s; {found.utilisation:.0%} of the peak" * bool(device.fp32)
         or f"{rate:,.0f} {found.unit}/s"),
        ("run", f"{duration(found.seconds)} for {found.steps:,} steps"),
    ]  # fmt: skip
    if not one.layout.runs:
        facts.append(("note", "an estimate only: bigmodel does not train with pipeline stages"))
    if found.price:
        hours = found.seconds / 3600 * found.cluster.count
        facts.append(("cost", f"{found.cost:,.0f} for {hours:,.1f} device hours at {found.price:g} per hour"))
    console.show(console.table("the run", ("", "value"), facts))


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
