"""gpt-nano through the engine against the plain loop, alternating; and generation with and without its cache.

python benchmarks/gpt.py [DATA_DIR]     (about 3 minutes on 2 quiet cores)
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import torch

from bigmodel_cli.core.registry import models
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.engine.assemble import assemble
from bigmodel_cli.engine.loop import settle, train_step
from bigmodel_cli.tasks.sampling import Sampling, next_tokens

HERE = Path(__file__).resolve().parent
ROUNDS, STEPS, NEW = 5, 300, 256


def engine(folder: str) -> float:
    values = {
        "model": {"name": "gpt-nano"},
        "data": {"name": "tinyshakespeare", "dir": folder},
        "optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1},
        "train": {"batch_size": 12, "epochs": 2, "max_steps": 2000, "clip_norm": 1.0},
    }
    run = assemble(resolve([Layer("benchmark", values)]).recipe)
    run.train_mode()
    for step, raw in zip(range(STEPS + 3), run.batches.steps(0), strict=False):
        if step == 3:
            clock = time.perf_counter()
        run.taken.append(train_step(run, raw))
        run.progress.step += 1
        settle(run, leave=run.placement.lag)
    return STEPS * 12 * 64 / (time.perf_counter() - clock)


def generation(use_cache: bool) -> float:
    """Seconds for NEW tokens after a prompt of 8, gpt-micro with room for all."""
    torch.manual_seed(0)
    model = models.get("gpt-micro")(TextSpec("byte", (), 512)).eval()
    with torch.inference_mode():
        clock = time.perf_counter()
        list(islice(next_tokens(model, [list(range(8))], Sampling(), use_cache), NEW))
    return time.perf_counter() - clock


def program(*arguments: str) -> float:
    command = [sys.executable, *arguments]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main(folder: str) -> None:
    plain, ours = [], []
    for _ in range(ROUNDS):
        plain.append(program(str(HERE / "gpt_plain.py"), folder, str(STEPS)))
        ours.append(program(__file__, folder, "engine"))
    for name, values in (("plain loop", plain), ("bigmodel", ours)):
        low, middle, high = min(values), statistics.median(values), max(values)
        sys.stdout.write(f"{name}: {middle:,.0f} tokens/s ({low:,.0f} to {high:,.0f}, n={ROUNDS})\n")
    sys.stdout.write(f"ratio of medians: {statistics.median(ours) / statistics.median(plain):.2f}\n")
    with_cache = [generation(True) for _ in range(ROUNDS)]
    without = [generation(False) for _ in range(ROUNDS)]
    times = statistics.median(without) / statistics.median(with_cache)
    sys.stdout.write(f"{NEW} tokens: {statistics.median(with_cache):.2f} s with the cache, {times:.1f}x without\n")


if __name__ == "__main__":
    data = sys.argv[1] if len(sys.argv) > 1 else str(HERE.parents[1] / "shared" / "data")
    if "engine" in sys.argv:
        sys.stdout.write(f"{engine(data)}\n")
    else:
        main(data)
