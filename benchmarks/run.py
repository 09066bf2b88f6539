"""bigmodel against the plain script, on the same work in the same run, alternating; rewrites RESULTS.md.

Only ratios count: machines are shared and noisy. Real MNIST is read from BIGMODEL_DATA
or ../shared/data.
"""

from __future__ import annotations

import gzip
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchvision

HERE = Path(__file__).resolve().parent
ROUNDS = 5
WORK = {"cnn": 200, "resnet18": 20}  # model -> steps of 128 pictures


def data_folder() -> Path:
    folder = Path(os.environ.get("BIGMODEL_DATA") or HERE.parents[1] / "shared" / "data")
    if not (folder / "mnist").is_dir():
        sys.exit("set BIGMODEL_DATA to a folder with mnist/ in it")
    return folder


def measure(program: str, model: str, folder: Path) -> float:
    command = [sys.executable, str(HERE / program), model, str(folder), str(WORK[model])]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def row(name: str, values: list[float]) -> str:
    return f"{name} {statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def main() -> None:
    folder, lines = data_folder(), []
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch)
        for file in (folder / "mnist").glob("train-*.gz"):
            with gzip.open(file) as packed, (raw / file.stem).open("wb") as out:
                shutil.copyfileobj(packed, out)
        for model in WORK:
            plain, ours = [], []
            for _ in range(ROUNDS):
                plain.append(measure("plain.py", model, raw))
                ours.append(measure("ours.py", model, folder))
            ratio = statistics.median(ours) / statistics.median(plain)
            cells = (row("", plain).strip(), row("", ours).strip())
            lines.append(f"| `{model}` MNIST, batch 128, training images/s | {cells[0]} | {cells[1]} | {ratio:.2f}x |")
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
    machine += f"torchvision {torchvision.__version__}, Python {platform.python_version()}"
    head = ["# Measured by `make bench`", "", f"{machine}. Median (lowest to highest) of {ROUNDS} alternating rounds."]
    head += ["", "| work | plain script | bigmodel | ratio |", "|---|---|---|---|"]
    (HERE / "RESULTS.md").write_text("\n".join([*head, *lines]) + "\n")
    sys.stdout.write((HERE / "RESULTS.md").read_text())


if __name__ == "__main__":
    main()
