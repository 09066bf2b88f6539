"""The steps of gpu.py, each in a process of its own: ``python benchmarks/gpu_steps.py STEP DATA [--small]``.

A step prints a JSON line for each row of its table as soon as it is known. With --small the sizes are those of a dry
run on a CPU.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from bigmodel_cli.core.resolve import Layer, resolve, set_layer

HERE = Path(__file__).resolve().parent
BIGMODEL = (sys.executable, "-m", "bigmodel_cli")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GPT2_BATCH = 32
GPT2 = ("data.context=1024", "data.vocabulary=50304", f"data.tokens={GPT2_BATCH * 1024 * 16}", "train.epochs=1000")
"""The vocabulary is padded to a multiple of 64, as in nanoGPT and llm.c."""
RESNET50 = ("data.size=224", "data.count=1024", "train.epochs=1000", "optimizer.name=momentum")
RECIPES = HERE.parent / "recipes"


def row(what: str, figure: str) -> None:
    sys.stdout.write(json.dumps({"row": [what, figure]}) + "\n")
    sys.stdout.flush()


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def bigmodel(*words: Any, code: int = 0) -> list[dict[str, Any]]:
    """The JSON lines of one bigmodel command.

    Raises:
        SystemExit: its exit code is not `code`.
    """
    done = subprocess.run([*BIGMODEL, *(str(w) for w in words), "--json"], capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"bigmodel {' '.join(map(str, words))}: exit code {done.returncode}\n{done.stderr}\n{done.stdout}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def timed(*words: Any) -> tuple[list[dict[str, Any]], float]:
    clock = time.perf_counter()
    return bigmodel(*words), time.perf_counter() - clock


def last(events: list[dict[str, Any]], key: str) -> Any:
    """The value of `key` in the last event that has it."""
    return next(e[key] for e in reversed(events) if key in e)


def recipe(model: str, data: str, batch: int, *options: str) -> Any:
    layers = [Layer("step", {"model": {"name": model}, "data": {"name": data}, "train": {"batch_size": batch}})]
    return resolve([*layers, set_layer(options)]).recipe


def steps_per_second(recipe: Any, warm: int, steps: int) -> tuple[float, Any]:
    """Optimizer steps a second of the engine after `warm` steps, and the run. Nothing is measured beforehand."""
    from bigmodel_cli.engine.training.assemble import assemble
    from bigmodel_cli.engine.training.loop import settle, train_step

    run = assemble(recipe, measure=False)
    run.train_mode()
    epochs = chain.from_iterable(run.batches.steps(epoch) for epoch in range(10_000))
    clock = 0.0
    for step, raw in enumerate(islice(epochs, warm + steps)):
        if step == warm:
            settle(run)
            synchronize()
            clock = time.perf_counter()
        run.pending_steps.append(train_step(run, raw))
        run.progress.step += 1
        settle(run, leave=run.placement.lag)
    settle(run)
    synchronize()
    return steps / (time.perf_counter() - clock), run


def peak_flops() -> float:
    """FLOP/s of bf16 matrix products, measured: 8192 x 8192 on a GPU."""
    side = 8192 if DEVICE.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=DEVICE).bfloat16() for _ in range(2))
    least = float("inf")
    for _ in range(10):
        synchronize()
        clock = time.perf_counter()
        a @ b
        synchronize()
        least = min(least, time.perf_counter() - clock)
    return 2 * side**3 / least


def rate_rows(what: str, rate: float, unit: str, run: Any, peak: float) -> None:
    """A row with units a second and their model FLOPs as a share of the measured peak."""
    from bigmodel_cli.engine.plan.mfu import utilisation

    flops = utilisation(run.recipe, run.task, run.placement).get("flops_per_unit", 0)
    share = f", {flops * rate / peak:.1%} of the measured bf16 peak" if flops else ""
    memory = f", {run.placement.memory_peak() / 2**30:.1f} GiB" if DEVICE.type == "cuda" else ""
    row(what, f"{rate:,.0f} {unit}/s{share}{memory}")


def plain_rate(model: torch.nn.Module, batch: tuple[torch.Tensor, ...], loss: Callable[..., torch.Tensor], steps: int,
               fused: Callable[..., torch.optim.Optimizer]) -> float:  # fmt: skip
    """Steps a second of the loop everyone writes, on one batch that is already on the device: bf16 autocast, fused."""
    optimizer = fused(model.parameters(), fused=True)
    clock = 0.0
    for step in range(steps + 12):
        if step == 12:  # kernels are chosen, compiled and loaded
            synchronize()
            clock = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            value = loss(model, *batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    synchronize()
    return steps / (time.perf_counter() - clock)


def machine(data: Path, small: bool) -> None:
    for check in bigmodel("env-check")[-1]["checks"]:
        if check["name"].startswith(("torch", "cuda", "cudnn", "gpu", "bf16", "driver", "memory")):
            row(f"env-check: {check['name']}", f"{check['status']}: {check['value']}")
    row("bf16 products", f"{peak_flops() / 1e12:,.1f} TFLOP/s")
    source = torch.randn((256 if DEVICE.type == "cuda" else 4) * 2**20, device=DEVICE)
    target = torch.empty_like(source)
    target.copy_(source)
    synchronize()
    clock = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    synchronize()
    row("copy of memory", f"{10 * 2 * source.nbytes / (time.perf_counter() - clock) / 1e9:,.0f} GB/s read and written")


def tests(data: Path, small: bool) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        str(HERE.parent / "tests" / "gpu"),
    ]
    command += ["-n", "6"] if DEVICE.type == "cuda" else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    row("pytest -m gpu", done.stdout.strip().splitlines()[-1])
    if done.returncode not in (0, 5):
        sys.exit(done.stdout[-5000:])


def resnet50(data: Path, small: bool) -> None:
    import torchvision

    size, batch, count, steps = (32, 4, 16, 2) if small else (224, 256, 1024, 60)
    name = "resnet18" if small else "resnet50"
    peak = peak_flops()
    options = (f"data.size={size}", f"data.count={count}", "train.epochs=1000", "optimizer.name=momentum")
    options = options if small else RESNET50
    for compiled in (False,) if small else (False, True):
        setting = recipe(name, "synthetic_images", batch, *options, f"placement.compile={str(compiled).lower()}")
        rate, run = steps_per_second(setting, 8, steps)
        rate_rows(f"bigmodel{', compiled' * compiled}, batch {batch}", rate * batch, "images", run, peak)
        del run
    model = torchvision.models.get_model(name).to(DEVICE, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size, device=DEVICE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=DEVICE)

    def loss(model: Any, images: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(images), labels)

    def sgd(parameters: Any, fused: bool) -> Any:
        return torch.optim.SGD(parameters, 0.1, 0.9, fused=fused)

    torch.backends.cudnn.benchmark = True
    plain = plain_rate(model, (images, labels), loss, steps, sgd) * batch
    row(f"plain loop, batch {batch} already on the device", f"{plain:,.0f} images/s")
    if small:
        return
    plain = plain_rate(torch.compile(model), (images, labels), loss, steps, sgd) * batch  # type: ignore[arg-type]
    row("plain loop, compiled", f"{plain:,.0f} images/s")


def gpt2(data: Path, small: bool) -> None:
    name, batch, context, steps = ("gpt-nano", 4, 64, 2) if small else ("gpt2-124m", GPT2_BATCH, 1024, 20)
    options = ("data.context=64", "data.tokens=4096", "train.epochs=1000") if small else GPT2
    peak = peak_flops()
    for compiled in (False,) if small else (True, False):
        setting = recipe(name, "synthetic_text", batch, *options, f"placement.compile={str(compiled).lower()}")
        rate, run = steps_per_second(setting, 5, steps)
        rate_rows(
            f"bigmodel{', compiled' * compiled}, batch {batch} x {context}", rate * batch * context, "tokens", run, peak
        )
        del run


def compile(data: Path, small: bool) -> None:
    """A new machine has nothing compiled: what this takes, the timed steps need not wait for."""
    if small:
        return
    works = (("gpt2-124m", "synthetic_text", GPT2_BATCH, GPT2), ("resnet50", "synthetic_images", 256, RESNET50))
    for model, source, batch, options in works:
        clock = time.perf_counter()
        steps_per_second(recipe(model, source, batch, *options, "placement.compile=true"), 1, 1)
        row(model, f"two steps after {time.perf_counter() - clock:.0f} s")


def airbench(data: Path, small: bool) -> None:
    given = ("--epochs", 1, "--set", "model.width=8", "--max-steps", 3) if small else ()
    file = RECIPES / "image" / "cifar10-airbench.yaml"
    for epochs in () if small else (8, 40):
        with tempfile.TemporaryDirectory() as out:
            words = ("train", file, "--data-dir", data, "--out", Path(out) / "run", "--epochs", epochs)
            events, seconds = timed(*words, "--set", "data.val_fraction=0.02")
            where = ("--data-dir", data, "--split", "test", "--tta")
            result = bigmodel("eval", Path(out) / "run", *where)[-1]["headline"]["accuracy"]["value"]
            rate = last(events, "images_per_second")
            row(f"{epochs} epochs", f"{result:.2%} of test with --tta; {seconds:.1f} s in all, {rate:,.0f} images/s")
    if small:
        with tempfile.TemporaryDirectory() as out:
            bigmodel("train", file, "--data-dir", data, "--out", Path(out) / "run", *given)
            row("3 steps", "done")


def finetune(data: Path, small: bool) -> None:
    weights = data / "tf_efficientnet_lite0.safetensors"
    for method in (("--freeze-backbone",), ()):
        with tempfile.TemporaryDirectory() as out:
            words = ("finetune", "timm:tf_efficientnet_lite0", "--from", weights, "--data", data / "cats-dogs")
            few = ("--max-steps", 2) if small else ()
            events, seconds = timed(*words, *method, "--out", Path(out) / "run", *few)
            result = bigmodel("eval", Path(out) / "run", "--split", "test")[-1]["headline"]["accuracy"]["value"]
            spent = f"{last(events, 'seconds'):.1f} s after its start, {last(events, 'verdict')}"
            row(" ".join(("finetune", *method)), f"{result:.1%} of test, {seconds:.1f} s in all; {spent}")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from bigmodel_cli.engine.checkpoint.checkpoint import load

    return dict(load(folder / "last.pt")["model"])


def resume(data: Path, small: bool) -> None:
    words = ["train", "resnet18", "--data", "mnist", "--data-dir", data, "--epochs", "1", "--batch-size", "512"]
    words += ["--set", "train.save_steps=20"] + (["--max-steps", "4", "--batch-size", "8"] if small else [])
    for deterministic in (False, True):
        with tempfile.TemporaryDirectory() as scratch:
            kind = [*words, "--set", f"placement.deterministic={str(deterministic).lower()}"]
            whole, cut = Path(scratch) / "whole", Path(scratch) / "cut"
            bigmodel(*kind, "--out", whole)
            process = subprocess.Popen([*BIGMODEL, *map(str, [*kind, "--out", cut])], stdout=subprocess.DEVNULL)
            while process.poll() is None and not (cut / "last.pt").exists():
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            process.wait()
            bigmodel("train", "--resume", "--out", cut)
            a, b = weights_of(whole), weights_of(cut)
            equal = all(torch.equal(a[k], b[k]) for k in a)
            apart = max((a[k].double() - b[k].double()).abs().max().item() for k in a)
            name = "deterministic" if deterministic else "default"
            row(name, ("equal bit for bit" if equal else f"apart by {apart:.2g}") + f" (stopped: {process.returncode})")


def nccl(data: Path, small: bool) -> None:
    """One rank: the collectives run, on NCCL where there is a GPU, and the losses are those of a run without them."""
    import dataclasses

    import torch.distributed as dist

    from bigmodel_cli.engine.build.optimizer import build_optimizer
    from bigmodel_cli.engine.device.placement import process_group_backend
    from bigmodel_cli.engine.distributed.ddp import DataParallel
    from bigmodel_cli.engine.distributed.fsdp import FullyShard
    from bigmodel_cli.engine.distributed.process_group import Group
    from bigmodel_cli.engine.training.assemble import assemble
    from bigmodel_cli.engine.training.loop import train_step

    backend = process_group_backend()
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    setting = recipe("gpt-nano", "synthetic_text", 16, "data.context=64", "data.vocabulary=512")
    reference: list[float] = []
    for strategy in ("none", "ddp", "fsdp", "fsdp, offloaded"):
        if strategy == "fsdp, offloaded" and DEVICE.type == "cpu":
            continue
        run = assemble(setting, measure=False)
        if strategy != "none":
            fsdp = (
                FullyShard(Group(), run.placement, offload=strategy.endswith("offloaded"))
                if "fsdp" in strategy
                else None
            )
            parallel = fsdp or DataParallel(Group(), find_unused=False)
            forward = parallel.wrap(run.model)
            optimizer = build_optimizer(run.recipe, run.model, run.adapted.rates)
            run = dataclasses.replace(run, parallel=parallel, forward=forward, optimizer=optimizer)
        run.train_mode()
        losses = [(r := train_step(run, raw)).loss.item() / r.count for raw in islice(run.batches.steps(0), 10)]
        reference = reference or losses
        apart = max(abs(a - b) for a, b in zip(losses, reference, strict=True))
        row(f"{strategy}, {backend}", f"10 steps, losses {losses[0]:.4f} to {losses[-1]:.4f}, apart by {apart:.1e}")
    dist.destroy_process_group()


def plan(data: Path, small: bool) -> None:
    from bigmodel_cli.engine.plan.devices import parse_cluster
    from bigmodel_cli.engine.plan.estimate import make_plan

    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "H100"
    cluster = parse_cluster("1xH200" if "H200" in name else "1xH100" if "H100" in name else "1xA100")
    works = (("resnet18", "synthetic_images", 2, ("data.size=64", "data.count=8")),) if small else (
        ("resnet50", "synthetic_images", 128, ("data.count=512",)),
        ("gpt2-124m", "synthetic_text", 16, ("data.vocabulary=50304",)),
    )  # fmt: skip
    for model, source, batch, options in works:
        setting = recipe(model, source, batch, *options, "train.epochs=1000", "placement.compile=false")
        estimate = make_plan(setting, cluster, None, 0.0).chosen
        assert estimate is not None
        rate, run = steps_per_second(setting, 6, 2 if small else 20)
        measured = run.placement.memory_peak() / 2**30
        row(f"{model}, batch {batch}: seconds a step", f"planned {estimate.step_seconds:.4f}, measured {1 / rate:.4f}")
        row(
            f"{model}, batch {batch}: memory",
            f"planned {estimate.memory.total / 2**30:.2f}, measured {measured:.2f} GiB",
        )
        del run


def export(data: Path, small: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        bigmodel("train", "cnn", "--data", "mnist", "--data-dir", data, "--max-steps", 20, "--out", run)
        for form in ("pt2", "aoti", "onnx"):
            try:
                events, seconds = timed("export", run, "--format", form, "--out", Path(scratch) / form,
                                        "--data-dir", data)  # fmt: skip
                row(form, f"exported and proven, {seconds:.1f} s; {json.dumps(events[-1])[:200]}")
            except SystemExit as error:
                row(form, str(error)[-400:].replace("\n", " "))


def mnist(data: Path, small: bool) -> None:
    for model, epochs in (("cnn", 3), ("resnet18", 3)):
        with tempfile.TemporaryDirectory() as out:
            words = ("train", model, "--data", "mnist", "--data-dir", data, "--epochs", epochs)
            few = ("--max-steps", 2) if small else ()
            events, seconds = timed(*words, *few, "--out", Path(out) / "run")
            rate, accuracy = last(events, "images_per_second"), last(events, "val_accuracy")
            row(f"{model}, {epochs} epochs", f"{rate:,.0f} images/s, val {accuracy:.2%}, {seconds:.1f} s in all")


def generate(data: Path, small: bool) -> None:
    from bigmodel_cli.engine.training.assemble import assemble
    from bigmodel_cli.tasks.sampling import Sampling, next_tokens

    name, new = ("gpt-nano", 8) if small else ("gpt2-124m", 256)
    for batch in (1, 32):
        run = assemble(recipe(name, "synthetic_text", 4, "data.context=512", "data.tokens=8192"), measure=False)
        prompts = torch.randint(10, 1000, (batch, 64)).tolist()
        for timing in (False, True):
            synchronize()
            clock = time.perf_counter()
            with torch.inference_mode(), run.placement.autocast():
                produced = len(list(islice(next_tokens(run.model.eval(), prompts, Sampling()), new)))
            synchronize()
            if timing:
                row(f"batch {batch}", f"{batch * produced / (time.perf_counter() - clock):,.0f} tokens/s")


STEPS: dict[str, Callable[[Path, bool], None]] = {
    f.__name__: f
    for f in (machine, tests, compile, resnet50, gpt2, airbench, finetune, resume, nccl, plan, export, mnist, generate)
}

if __name__ == "__main__":
    os.environ.setdefault("BIGMODEL_CACHE", tempfile.mkdtemp())
    STEPS[sys.argv[1]](Path(sys.argv[2]), "--small" in sys.argv)
