"""nanoGPT's CPU setting through the engine and as nanoGPT itself does it, alternating; and what the KV cache gains.

python benchmarks/gpt.py [DATA_DIR]     prints Markdown for RESULTS-text.md (under 4 minutes on 2 quiet cores)
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch

from bigmodel_cli.core.registry import models
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.engine.device.hardware import cpu_info
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.loop import settle, train_step
from bigmodel_cli.tasks.sampling import Sampling, next_tokens

HERE = Path(__file__).resolve().parent
ROUNDS, STEPS, NEW, REPEATS = 4, 300, 256, 3
SETTING = ("--optimizer", "adamw", "--lr", "2e-3", "--set", "optimizer.betas=[0.9, 0.99]", "--set",
           "optimizer.weight_decay=0.1", "--schedule", "cosine", "--set", "schedule.warmup=0.05", "--set",
           "schedule.final=0.1", "--batch-size", "12", "--epochs", "2", "--max-steps", "2000", "--set",
           "train.clip_norm=1.0")  # fmt: skip
"""nanoGPT's, but for twice its rate."""


def engine(folder: str) -> float:
    """Training tokens a second of the engine's own steps, after three that warm up; the placement is measured first."""
    values = {
        "model": {"name": "gpt-nano"},
        "data": {"name": "tinyshakespeare", "dir": folder},
        "optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1},
        "train": {"batch_size": 12, "epochs": 2, "max_steps": 2000, "clip_norm": 1.0},
    }
    run = assemble(resolve([Layer("benchmark", values)]).recipe)
    sys.stderr.write(f"{run.placement}\n")
    run.train_mode()
    for step, raw in zip(range(STEPS + 3), run.batches.steps(0), strict=False):
        if step == 3:
            clock = time.perf_counter()
        run.pending_steps.append(train_step(run, raw))
        run.progress.step += 1
        settle(run, leave=run.placement.lag)
    return STEPS * 12 * 64 / (time.perf_counter() - clock)


def products() -> float:
    """Seconds for the matrix products of one step alone, fp32: the floor under every loop that does not drop any.

    Each on operands of its own, as in a step, where they come from a cache further away than in a loop over one.
    """
    tokens, width, layers, vocabulary = 12 * 64, 128, 4, 65
    shapes = layers * [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    made = [
        (torch.randn(tokens, inputs), torch.randn(outputs, inputs), torch.randn(tokens, outputs))
        for inputs, outputs in [*shapes, (width, vocabulary)]
    ]
    times = []
    for _ in range(30):
        clock = time.perf_counter()
        for x, weight, grad in made:
            x @ weight.t(), grad @ weight, grad.t() @ x
        times.append(time.perf_counter() - clock)
    return statistics.median(times)


def whole_command(folder: str) -> tuple[float, float, float]:
    """The 2,000 steps by `bigmodel train`: val loss, seconds in all, and tokens a second of its epochs."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "bigmodel_cli", "train", "gpt-nano", "--data", "tinyshakespeare"]
        command += ["--data-dir", folder, *SETTING, "--out", f"{place}/run", "--json"]
        clock = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parent)
    seconds = time.perf_counter() - clock
    events = [json.loads(line) for line in done.stdout.splitlines()]
    rates = [e["tokens_per_second"] for e in events if e["event"] == "epoch"]
    return events[-1]["val_loss"], seconds, statistics.median(rates)


def generation(use_cache: bool) -> float:
    """Seconds for NEW tokens after a prompt of 8, gpt-mini (11 million parameters) with room for all."""
    torch.manual_seed(0)
    model = models.get("gpt-mini")(TextSpec("byte", (), 512)).eval()
    with torch.inference_mode():
        clock = time.perf_counter()
        list(islice(next_tokens(model, [list(range(8))], Sampling(), use_cache), NEW))
    return time.perf_counter() - clock


def program(*arguments: str) -> float:
    command = [sys.executable, *arguments]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def spread(values: list[float], form: str = "{:,.0f}") -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{form.format(middle)} ({form.format(low)} to {form.format(high)}, n={len(values)})"


def main(folder: str) -> None:
    plain, ours = [], []
    for _ in range(ROUNDS):
        plain.append(program(str(HERE / "gpt_plain.py"), folder, str(STEPS)))
        ours.append(program(__file__, folder, "engine"))
    loss, seconds, rate = whole_command(folder)
    cached, bare = ([generation(use) for _ in range(REPEATS)] for use in (True, False))
    floor, step = products(), 12 * 64 / statistics.median(plain)
    rows = [
        ("nanoGPT's loop in plain torch, tokens/s", spread(plain), ""),
        ("the engine, tokens/s", spread(ours), f"{statistics.median(ours) / statistics.median(plain):.2f}x"),
        ("the matrix products of a step alone, ms", f"{1e3 * floor:.1f} of {1e3 * step:.1f}",
         f"at most {step / floor:.2f}x, with all else free"),
        ("`bigmodel train`, 2,000 steps and validation", f"{seconds:.0f} s, {rate:,.0f} tokens/s in its epochs", ""),
        ("its val loss (nanoGPT states 1.88)", f"{loss:.3f} (n=1)", ""),
        (f"{NEW} tokens of gpt-mini without a cache, s", spread(bare, "{:.2f}"), ""),
        ("the same with the cache, s", spread(cached, "{:.2f}"),
         f"{statistics.median(bare) / statistics.median(cached):.1f}x"),
    ]  # fmt: skip
    name, flags = cpu_info()
    extra = ", ".join(sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}))
    sys.stdout.write(f"{name}, {torch.get_num_threads()} threads ({extra}), torch {torch.__version__}\n\n")
    sys.stdout.write("| what | measured | ratio |\n|---|---|---|\n")
    sys.stdout.writelines(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    data = sys.argv[1] if len(sys.argv) > 1 else str(HERE.parents[1] / "shared" / "data")
    if "engine" in sys.argv:
        sys.stdout.write(f"{engine(data)}\n")
    else:
        main(data)
