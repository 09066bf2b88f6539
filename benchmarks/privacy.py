"""MNIST at epsilon 3, delta 1e-5 by the two recipes of recipes/privacy, and what membership inference finds.

python benchmarks/privacy.py            trains both and writes RESULTS-privacy.md
python benchmarks/privacy.py --attack   also attacks small models with and without privacy
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {"mnist-dpsgd": "end-to-end DP-SGD, TF-Privacy's network", "mnist-scatternet": "linear on ScatterNet"}
PUBLISHED = {"mnist-dpsgd": "96.6%", "mnist-scatternet": "98.1%"}
SMALL = ["mlp", "--data", "digits", "--set", "data.val_fraction=0.5", "--epochs", "100", "--lr", "3e-3"]


def bigmodel(*arguments: str) -> Any:
    """The last JSON line of a command."""
    command = [sys.executable, "-m", "bigmodel_cli", *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def recipes(folder: Path) -> list[str]:
    lines = ["| recipe | test accuracy (95%) | published | epsilon | training |", "|---|---|---|---|---|"]
    for name, what in RECIPES.items():
        started = time.perf_counter()
        run = bigmodel("train", f"recipes/privacy/{name}.yaml", "--out", str(folder / name))
        seconds = time.perf_counter() - started
        found = bigmodel("eval", str(folder / name / "best.pt"), "--split", "test")["headline"]["accuracy"]
        accuracy = f"{found['value']:.2%} ({found['low']:.2%} .. {found['high']:.2%})"
        lines.append(f"| {what} | {accuracy} | {PUBLISHED[name]} | {run['epsilon']:.3g} | {seconds:,.0f} s |")
        sys.stderr.write(lines[-1] + "\n")
    return lines


def attacks(folder: Path) -> list[str]:
    lines = ["| model | AUC | TPR at 1% FPR | bound |", "|---|---|---|---|"]
    for name, extra in (("without privacy", []), ("epsilon 3", ["--private", "3"])):
        out = folder / name.replace(" ", "-")
        bigmodel("train", *SMALL, *extra, "--out", str(out))
        found = bigmodel("eval", str(out / "last.pt"), "--membership")["membership"]
        auc, tpr = (found["attacks"]["lira"][key] for key in ("auc", "tpr_at_0.01_fpr"))
        bound = found.get("bound", {}).get("tpr_at_0.01_fpr")
        lines.append(
            f"| {name} | {auc['value']:.3f} ({auc['low']:.3f} .. {auc['high']:.3f}) | {tpr['value']:.2%} "
            f"({tpr['low']:.2%} .. {tpr['high']:.2%}) | {'-' if bound is None else f'{bound:.1%}'} |"
        )
        sys.stderr.write(lines[-1] + "\n")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--attack", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        text = [
            "# Privacy",
            "",
            f"MNIST at epsilon 3, delta 1e-5; one run each. {machine}.",
            "",
            *recipes(Path(folder)),
        ]
        if chosen.attack:
            text += ["", "LiRA with 16 shadow models on an mlp of 700 digits, 100 epochs.", "", *attacks(Path(folder))]
        (ROOT / "benchmarks" / "RESULTS-privacy.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
