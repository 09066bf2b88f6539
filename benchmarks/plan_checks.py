"""``bigmodel plan`` against what is measured here, and against runs that others have published.

    python benchmarks/plan_checks.py memory      # predicted and measured peak of one step, on this CPU
    python benchmarks/plan_checks.py time        # predicted and measured seconds of one step, on this CPU
    python benchmarks/plan_checks.py published   # predicted and published rates of large runs; a name: of that one

Each prints a table of RESULTS-plan.md. A step is measured in a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.core.resolve import Layer, resolve, set_layer
from bigmodel_cli.engine.plan.devices import parse_cluster
from bigmodel_cli.engine.plan.estimate import Plan, Tracer, make_plan
from bigmodel_cli.engine.plan.roofline import phase_seconds

HERE = (
    ("cnn", "synthetic_images", 512, ("data.size=28", "data.channels=1", "data.classes=10", "data.count=2048")),
    ("resnet18", "synthetic_images", 64, ("data.size=28", "data.channels=1", "data.classes=10", "data.count=256")),
    ("resnet50", "synthetic_images", 8, ("data.count=64",)),
    ("vit", "synthetic_images", 64, ("data.size=28", "data.channels=1", "data.classes=10", "data.count=256")),
    ("gpt-nano", "synthetic_text", 64, ("data.vocabulary=65", "data.context=64")),
    ("gpt2-124m", "synthetic_text", 4, ("data.context=256", "data.tokens=20000")),
)
"""Model, data, batch and options."""


@dataclass(frozen=True)
class Published:
    """A run that others made: how we say it, and what they had: units a second on one device, or FLOP/s of one."""

    name: str
    gpus: str
    model: str
    batch: int
    options: tuple[str, ...]
    rate: float
    unit: str
    source: str
    layout: str | None = None
    """Theirs, where they say it; None: the one that plan chooses."""
    network: float | None = None


DAY = 86400
LLAMA = ("model.position=rope", "model.norm=rms", "model.mlp=swiglu", "model.tied=false")
RUNS = (
    Published(
        "ResNet-50, mixed precision", "A100-80GB", "resnet50", 256, (), 2470, "images/s",
        "NVIDIA DeepLearningExamples, PyTorch ConvNets, resnet50v1.5 README, DGX A100, 1 GPU", "single",
    ),
    Published(
        "ResNet-50, TF32", "A100-80GB", "resnet50", 256, ("placement.precision=fp32",), 938, "images/s",
        "the same, 1 GPU", "single",
    ),
    Published(
        "ResNet-50, mixed precision", "8xA100-80GB", "resnet50", 2048, (), 16621 / 8, "images/s", "the same, 8 GPUs",
        "ddp",
    ),
    Published(
        "GPT-2 124M", "8xA100-40GB", "gpt2-124m", 480, ("data.tokens=491520000", "placement.compile=true"),
        600_000 * 491_520 / (4 * DAY) / 8, "tokens/s",
        'nanoGPT README and config/train_gpt2.py: 600,000 steps of 0.5 M tokens, "about 4 days"', "ddp",
    ),
    Published(
        "MPT-7B", "440xA100-40GB", "gpt", 1760,
        ("model.layers=32", "model.width=4096", "model.heads=32", "data.vocabulary=50432", "data.context=2048"),
        1e12 / (9.5 * DAY) / 440, "tokens/s",
        "MosaicML 2023, MPT-7B blog post: 1 T tokens, 9.5 days, $200k (440 GPUs at $2)", "fsdp",
    ),
    Published(
        "Llama 2 70B", "1024xA100-80GB", "gpt", 1024,
        ("model.layers=80", "model.width=8192", "model.heads=64", "model.kv_heads=8", "model.inside=28672",
         "data.vocabulary=32000", "data.context=4096", *LLAMA),
        2e12 / (1_720_320 * 3600), "tokens/s",
        "Touvron et al. 2023, table 2: 1,720,320 A100-80GB hours, 2 T tokens, batch 4 M (the GPU count is ours)",
    ),
    Published(
        "BLOOM 176B", "384xA100-80GB", "gpt", 2048,
        ("model.layers=70", "model.width=14336", "model.heads=112", "data.vocabulary=250680", "data.context=2048"),
        150e12, "FLOP/s",
        "BigScience 176B model page, 2022: about 150 TFLOP/s; arXiv 2211.05100: tensor 4, pipeline 12, data 8, "
        "4 x 100 Gb/s Omni-Path for 8 GPUs",
        "tp4 x pp12", network=6.25,
    ),
    *(
        Published(
            "Llama 3.1 405B", f"{count}xH100", "gpt", 2048,
            ("model.layers=126", "model.width=16384", "model.heads=128", "model.kv_heads=8", "model.inside=53248",
             "data.vocabulary=128256", "data.context=8192", *LLAMA),
            rate, "FLOP/s",
            "Llama Team 2024, table 4: 16 M tokens a batch, tensor 8, pipeline 16, TFLOP/s a GPU; section 3.3.2: "
            "interleaved, a chunk less its one layer is the embedding or the head alone, so 8 chunks for 126 + 2",
            "tp8 x pp16x8",
        )
        for count, rate in ((8192, 430e12), (16384, 400e12))
    ),
)  # fmt: skip


def recipe(model: str, data: str, batch: int, options: tuple[str, ...]) -> Any:
    layers = [Layer("check", {"model": {"name": model}, "data": {"name": data}, "train": {"batch_size": batch}})]
    return resolve([*layers, set_layer(options)]).recipe


def here(index: int) -> Any:
    model, data, batch, options = HERE[index]
    return recipe(model, data, batch, (*options, "placement.precision=fp32", "placement.device=cpu"))


def measure_allocator(index: int) -> dict[str, float]:
    """What torch's allocator handed out at most in one step, above what the run holds between steps."""
    from torch.profiler import ProfilerActivity, profile

    from bigmodel_cli.engine.training.loop import train_step

    run, raw = started(here(index))
    held = [*run.model.parameters(), *run.model.buffers()]
    held += [x for state in run.optimizer.state.values() for x in state.values() if hasattr(x, "untyped_storage")]
    sizes = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train_step(run, raw)
    recorded = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    live = most = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in recorded if e.name() == "[memory]"):
        live += size
        most = max(most, live)
    return {"bytes": most + sum(sizes.values())}


def measure_process(index: int) -> dict[str, float]:
    """What the process itself grew by at most, from where a tiny run of the same model had loaded every library."""
    from bigmodel_cli.engine.training.loop import train_step

    started(here(index), batch=2)
    give_back = ctypes.CDLL(None).malloc_trim
    give_back(0)
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    run, raw = started(here(index))
    train_step(run, raw)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return {"bytes": peak - before}


def started(recipe: Any, batch: int | None = None) -> tuple[Any, Any]:
    """A run after its first step, and the raw batch of it."""
    from bigmodel_cli.engine.training.assemble import assemble
    from bigmodel_cli.engine.training.loop import train_step

    if batch is not None:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch_size": batch})})
    run = assemble(recipe, measure=False)
    run.train_mode()
    raw = next(run.batches.steps(0))
    train_step(run, raw)
    return run, raw


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure_time(index: int) -> dict[str, float]:
    """The median of some real steps, preparation of the batch and all; the ceilings are medians as well."""
    from bigmodel_cli.engine.training.loop import train_step

    run, raw = started(here(index))
    times: list[float] = []
    while len(times) < 5 or (sum(times) < 5 and len(times) < 30):
        clock = time.perf_counter()
        train_step(run, raw).loss.item()
        times.append(time.perf_counter() - clock)
    return {"seconds": sorted(times)[len(times) // 2]}


def alone(what: str, index: int) -> dict[str, float]:
    command = [sys.executable, __file__, what, str(index)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def memory_table() -> list[str]:
    rows = [
        "| model | batch | predicted | measured, allocator | | measured, process | |",
        "|---|---|---|---|---|---|---|",
    ]
    for index, (model, _, batch, _) in enumerate(HERE):
        tracer = Tracer(here(index), parse_cluster("cpu"), calibrate=False)
        predicted = tracer.trace(batch, False, False).memory().total
        found = [alone(what, index)["bytes"] for what in ("allocator", "process")]
        cells = [f"{size / 1e6:,.0f} MB | {predicted / size - 1:+.1%}" for size in found]
        rows.append(f"| {model} | {batch} | {predicted / 1e6:,.0f} MB | {' | '.join(cells)} |")
    return rows


def time_table() -> list[str]:
    rows = ["| model | batch | predicted | measured | |", "|---|---|---|---|---|"]
    for index, (model, _, batch, _) in enumerate(HERE):
        tracer = Tracer(here(index), parse_cluster("cpu"))
        predicted = sum(phase_seconds(tracer.trace(batch, False, False), tracer.ceilings).values())
        found = alone("seconds", index)["seconds"]
        rows.append(
            f"| {model} | {batch} | {predicted * 1e3:.1f} ms | {found * 1e3:.1f} ms | {predicted / found - 1:+.0%} |"
        )
    return rows


def published_table(part: str = "") -> Iterator[str]:
    yield "| run | on | parameters | layout | predicted | published | ratio | of those that run here | source |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for run in (run for run in RUNS if part in run.name + run.gpus):
        data = "synthetic_text" if run.model.startswith("gpt") else "synthetic_images"
        tokens = any(o.startswith("data.tokens") for o in run.options) or data != "synthetic_text"
        more = () if tokens else ("data.tokens=1000000000000",)
        wanted, machines = (
            recipe(run.model, data, run.batch, (*run.options, *more)),
            parse_cluster(run.gpus, run.network),
        )
        clock = time.perf_counter()
        own = make_plan(wanted, machines, None, 0)
        plan = own if run.layout is None else make_plan(wanted, machines, run.layout, 0)
        took = time.perf_counter() - clock
        scale, unit = (1e12, "TFLOP/s") if run.unit == "FLOP/s" else (1, run.unit)
        rate, best = rate_of(plan, run.unit), rate_of(own, run.unit)
        assert plan.chosen is not None and own.chosen is not None
        yield (
            f"| {run.name} | {run.gpus} | {plan.parameters / 1e9:,.3g} B | {plan.chosen.layout} "
            f"| {rate / scale:,.0f} {unit} | {run.rate / scale:,.0f} {unit} | {rate / run.rate:.2f} "
            f"| {own.chosen.layout}: {best / scale:,.0f} | {run.source} |"
        )
        sys.stderr.write(
            f"{run.name} {run.gpus}: planned in {took:.1f} s; {plan.why}; {plan.chosen.memory.total / 1e9:.0f} GB\n"
        )


def rate_of(plan: Plan, unit: str) -> float:
    """What each device does in a second, in FLOP or what the task counts."""
    assert plan.chosen is not None, plan.why
    done = plan.flops if unit == "FLOP/s" else plan.units
    return done / plan.chosen.step_seconds / plan.cluster.count


def main() -> None:
    what, *rest = sys.argv[1:]
    measurements = {"allocator": measure_allocator, "process": measure_process, "seconds": measure_time}
    if what in measurements:
        sys.stdout.write(json.dumps(measurements[what](int(rest[0]))) + "\n")
    else:
        tables: dict[str, Any] = {"memory": memory_table, "time": time_table, "published": published_table}
        for row in tables[what](*rest):
            sys.stdout.write(row + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
