"""The same work through bigmodel's engine, as `bigmodel train` runs it. Prints training images/s.

python benchmarks/ours.py MODEL DATA_DIR STEPS
"""

from __future__ import annotations

import sys
import time

from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.assemble import assemble
from bigmodel_cli.engine.loop import train_step

BATCH = 128


def main(name: str, folder: str, steps: int) -> None:
    model = {"name": name, "stem": "imagenet"} if name == "resnet18" else {"name": name}
    values = {
        "model": model,
        "data": {"name": "mnist", "dir": folder},
        "optimizer": {"name": "momentum", "lr": 0.01},
        "train": {"batch_size": BATCH},
    }
    run = assemble(resolve([Layer("benchmark", values)]).recipe)
    run.train_mode()
    batches, done = run.batches.steps(0), 0
    for step, raw in zip(range(steps + 3), batches, strict=False):
        if step == 3:  # the first steps warm up
            clock = time.perf_counter()
        train_step(run, raw)
        done += len(raw["index"]) if step >= 3 else 0
    sys.stdout.write(f"{done / (time.perf_counter() - clock)}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
