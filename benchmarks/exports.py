"""Every export format of five models trained on real MNIST, proven, as the Markdown tables of RESULTS-export.md.

python benchmarks/exports.py [MODEL ...] [--formats onnx,pt2] [--steps 120] [--seconds 1]

MNIST is read from BIGMODEL_DATA or ../shared/data. Each model is trained for a few hundred
steps: enough for answers that mean something, which is what a proof needs. A format whose
package is not installed is left out and named. Both sides of a row have the same threads.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("cnn", "alexnet", "resnet18", "resnet20", "vit")
SHORT = {"alexnet": 60, "vit": 300}
"""Steps of training where the usual number takes too long, or learns too little."""
COLUMNS = ("format", "largest difference", "equal answers", "accuracy", "size, MB", "batch 1: p50 / p95, ms",
           "batch 32: p50 / p95, ms", "a second at 32")  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("models", nargs="*", default=MODELS)
    arguments.add_argument("--formats", help="comma-separated; default all")
    arguments.add_argument("--steps", type=int, default=120)
    arguments.add_argument("--seconds", type=float, default=1.0)
    arguments.add_argument("--samples", type=int, default=1000)
    given = arguments.parse_args()
    os.environ.setdefault("BIGMODEL_DATA", str(ROOT.parent / "shared/data"))
    sys.path.insert(0, str(ROOT))
    import torch

    _say(f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as place:
        for model in given.models:
            run = Path(place) / model
            _train(model, run, SHORT.get(model, given.steps) if given.steps == 120 else given.steps)
            _table(model, run, given)


def _train(model: str, run: Path, steps: int) -> None:
    command = [sys.executable, "-m", "bigmodel_cli", "train", model, "--data", "mnist", "--max-steps", str(steps)]
    command += ["--batch-size", "64", "--precision", "fp32", "--out", str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{model}: {done.stderr}")


def _table(model: str, run: Path, given: argparse.Namespace) -> None:
    from bigmodel_cli.commands.export import subject
    from bigmodel_cli.core.errors import BigmodelError
    from bigmodel_cli.core.registry import exports
    from bigmodel_cli.engine.build.load import load_trained
    from bigmodel_cli.export.proof import prove

    what = subject(load_trained(run), given.samples, None, None)
    names = given.formats.split(",") if given.formats else exports.names()
    rows, left_out = [], []
    for name in names:
        try:
            proof = prove(what, name, run / f"out-{name}", seconds=given.seconds)
        except BigmodelError as error:
            left_out.append(error.what)
            continue
        rows.append(_row(name, proof))
        if name == "onnx":
            proof = prove(replace(what, pixels=True), name, run / "out-pixels", seconds=given.seconds)
            rows.append(_row("onnx, with preprocessing", proof))
        if len(rows) == 1 or (len(rows) == 2 and name == "onnx"):
            rows.insert(0, _row("the checkpoint", proof, "checkpoint"))
    head = f"### {model}\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
    _say("\n".join([head, *rows, "", *(f"- left out: {line}" for line in left_out)]))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _row(name: str, proof: Any, side: str = "export") -> str:
    values = proof.to_dict()
    one, many = (values["speed"][side][size] for size in ("1", "32"))
    accuracy = values["metrics"][side]["accuracy"]["value"]
    against = [f"{values['largest_difference']:.1g}", f"{values['equal_answers']:.2%}"]
    against = ["", ""] if side == "checkpoint" else against
    failed = "" if values["passed"] else " **FAILED: " + values["failed"][0] + "**"
    cells = [
        name + failed,
        *against,
        f"{accuracy:.2%}",
        f"{values['size'][side] / 1e6:.2f}",
        *(f"{figures['p50_ms']:.2f} / {figures['p95_ms']:.2f}" for figures in (one, many)),
        f"{many['per_second']:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _processor() -> str:
    from bigmodel_cli.engine.device.hardware import cpu_info

    return cpu_info()[0]


if __name__ == "__main__":
    main()
