"""MNIST ResNet-18 made smaller and quicker: the commands a person would type, and RESULTS-compress.md.

    python benchmarks/compress.py            # about 8 minutes on 2 quiet cores

Trains the source for one epoch, searches with --max-drop 0.2 --epochs 3, and reads the test split once
for the source and once for what was chosen. Writes the table of RESULTS-compress.md and the figure of docs/compress.md.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, FIGURE = ROOT / "benchmarks/RESULTS-compress.md", ROOT / "docs/compress-frontier.png"
BETWEEN = re.compile(r"(<!-- figures: .* -->\n).*(<!-- to here -->)", re.DOTALL)


def bigmodel(folder: Path, *arguments: object) -> dict[str, Any]:
    """The last JSON line that the command says."""
    command = [sys.executable, "-m", "bigmodel_cli", *map(str, arguments), "--json"]
    sys.stderr.write("$ bigmodel " + " ".join(command[3:]) + "\n")
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def rows(found: dict[str, Any]) -> list[str]:
    lines = ["| | MB | smaller | ms b1 | ms b32 | x1 | x32 | val | drop | frontier |", "|---" * 10 + "|"]
    source = found["source"]
    for p in [source, *found["points"]]:
        faster = [p["beside"][b] / p["latency"][b] for b in ("1", "32")]
        drop = "-" if p["drop"] is None else f"{p['drop']:.2f}"
        lines.append(
            f"| `{p['name']}` | {p['bytes'] / 1e6:.2f} | {source['bytes'] / p['bytes']:.1f} | {p['latency']['1']:.2f} "
            f"| {p['latency']['32']:.1f} | {faster[0]:.1f} | {faster[1]:.1f} | {p['value']:.2%} | {drop} "
            f"| {'yes' if p.get('frontier') else ''} |"
        )
    return lines


def main() -> None:
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = ROOT / "recipes/image/mnist-resnet18-fast.yaml"
        bigmodel(folder, "train", recipe, "--precision", "fp32", "--out", "source")
        found = bigmodel(folder, "compress", "source", "--max-drop", 0.2, "--epochs", 3, "--out", "small")
        chosen = found["chosen"]
        tests = [
            bigmodel(folder, "eval", path, "--split", "test", "--precision", "fp32")["headline"]["accuracy"]
            for path in ("source", chosen["path"])
        ]
        shutil.copy(folder / "small/frontier.png", FIGURE)
    before, after = (f"{t['value']:.2%} ({t['low']:.2%} .. {t['high']:.2%})" for t in tests)
    text = "\n".join([
        "MNIST `resnet18` (`mnist-resnet18-fast`, one epoch, seed 0), searched with "
        "`--max-drop 0.2 --epochs 3`; "
        f"{found['source']['threads']} threads of {platform.machine()}, torch {torch.__version__}; one run "
        "(`python benchmarks/compress.py`):",
        "", *rows(found), "",
        f"Chosen: `{chosen['name']}`, {found['source']['bytes'] / chosen['bytes']:.1f} times smaller and "
        f"{chosen['speedup']:.1f} times as fast. On the test split, read once afterwards, the source has {before} "
        f"and the chosen model {after}.", "",
        "![size against accuracy of every candidate](../docs/compress-frontier.png)", "",
    ])  # fmt: skip
    PAGE.write_text(BETWEEN.sub(lambda m: m[1] + text + m[2], PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
