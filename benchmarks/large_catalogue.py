"""A catalogue of ten million items: train, evaluate, save and recommend, and the most memory that each process took.

python benchmarks/large_catalogue.py [--items N] [--width D] [--out DIR]

The gradients of the table are sparse, and its optimizer keeps one number a row. Prints one line of JSON a command.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_GB = 8.0


def measured(*arguments: str) -> dict[str, object]:
    """Run a command: its seconds, the most memory that it held at once in GB, and its last line of JSON."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "bigmodel_cli", *arguments, "--json"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = process.stdout.read().decode().splitlines()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit {process.returncode}")
    seconds, peak = time.perf_counter() - started, used.ru_maxrss * 1024 / 1e9
    return {"command": arguments[0], "seconds": round(seconds, 1), "peak_gb": round(peak, 2),
            "within": peak < LIMIT_GB, "last": json.loads(lines[-1])}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = str((arguments.out or Path(place)) / "run")
        settings = (
            f"data.items={arguments.items}", "data.users=20000", "data.length=20", "data.held_out=16",
            "model.negatives=1024", "model.sparse=true", f"model.width={arguments.width}", "train.eval_batch_size=16",
            "placement.precision=fp32",
        )  # fmt: skip
        given = [part for setting in settings for part in ("--set", setting)]
        train = ("train", "sasrec", "--data", "synthetic_interactions", "--optimizer", "rowwise-adagrad")
        for command in (
            (*train, *given, "--epochs", "1", "--out", run),
            ("predict", run, "--user", "7", "--top", "10"),
        ):
            sys.stdout.write(json.dumps(measured(*command)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
