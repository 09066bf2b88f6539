"""Published weights on somebody's own data: ours by default beside plain scripts, in one run.

    python benchmarks/published.py DATA_DIR DATA [--model timm:NAME] [--rows ours plain ...]
    python benchmarks/published.py DATA_DIR rt-polarity --model hf:FOLDER
    python benchmarks/published.py DATA_DIR FOLDER --model hf:FOLDER --epochs 3
    python benchmarks/published.py --speed

DATA_DIR is what ``finetune --data-dir`` takes: its weights/ is where ``--pretrained`` looks. DATA is a folder with
train/ and test/ class folders, or, with an ``hf:`` model, rt-polarity or a folder with train.csv and test.csv. Each row
is a process of its own; it is timed from its start to the end of training, imports included. The test split is read
once for each. About 10 minutes on 2 quiet cores for 300 photos. ``--speed`` times fine-tuning of a dozen timm models
instead, with random weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "bigmodel_cli"]
OURS = {
    "ours": ("ours, by default", []),
    "ours-frozen": ("ours, `--freeze-backbone`", ["--freeze-backbone"]),
    "ours-auto": ("ours, `--method auto`", ["--method", "auto"]),
}
PHOTOS = {
    "plain": "plain script: AdamW 1e-3, batches of 32, 2 epochs",
    "plain-frozen": "the same, frozen backbone",
    "fastai": "fastai's `fine_tune(2)` written out",
}
TEXTS = {
    "plain": "plain script: AdamW 5e-5, batches of 32, linear warm-up",
    "plain-frozen": "scikit-learn's logistic regression on mean-pooled features",
    "trainer": "transformers' `Trainer` with its defaults",
}


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run(command: list[str], place: str) -> tuple[str, float, float]:
    """Standard output, seconds and peak memory in GB of a command; an exit code other than 0 is an error."""
    with tempfile.TemporaryFile("w+") as out:
        clock = time.perf_counter()
        child = subprocess.Popen(command, cwd=place, stdout=out, text=True)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - clock
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, command)
        out.seek(0)
        return out.read(), seconds, usage.ru_maxrss / 1e6


def ours(arguments: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """Fine-tune with our command, then read the test split."""
    data = str(arguments.data.resolve()) if arguments.data.exists() else str(arguments.data)
    with tempfile.TemporaryDirectory() as place:
        where = ["--data", data, "--data-dir", str(arguments.data_dir.resolve())]
        tune = [*COMMAND, "finetune", arguments.model, "--pretrained", *where, *flags, "--out", "run"]
        _, seconds, peak = run(tune, place)
        said, _, _ = run([*COMMAND, "eval", "run", "--split", "test", "--json"], place)
    found = json.loads(said)
    return {"accuracy": found["headline"]["accuracy"]["value"], "n": found["samples"], "seconds": seconds, "peak": peak}


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95% interval of a share of `n` (Wilson 1927)."""
    z = 1.96
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path, nargs="?")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--model", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--rows", nargs="+", choices=list(OURS | PHOTOS | TEXTS))
    parser.add_argument("--epochs", type=int, default=2, help="of the plain script of texts")
    parser.add_argument("--tokens", type=int, default=64, help="of a text, in the plain scripts")
    parser.add_argument("--speed", nargs="*", metavar="NAME", help="time these timm models, or a dozen")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.speed is not None:
        from published_speed import DOZEN, speed

        speed(arguments.speed or DOZEN, say)
        return
    text = arguments.model.startswith("hf:")
    if text:
        arguments.model = f"hf:{Path(arguments.model[3:]).resolve()}"
    if arguments.one:
        from published_plain import photos, texts

        say(json.dumps((texts if text else photos)(arguments, arguments.one)))
        return
    theirs = TEXTS if text else PHOTOS
    say("| row | test accuracy (95%) | seconds | peak memory |\n|---|---|---|---|")
    for row in arguments.rows or (*OURS, *theirs):
        if row in OURS:
            name, flags = OURS[row]
            found = ours(arguments, flags)
        else:
            name, place = theirs[row], [str(arguments.data_dir), str(arguments.data)]
            again = [sys.executable, __file__, *place, "--model", arguments.model, "--one", row]
            again += ["--epochs", str(arguments.epochs), "--tokens", str(arguments.tokens)]
            said, _, peak = run([*again, "--started", str(time.time())], ".")
            found = {**json.loads(said.splitlines()[-1]), "peak": peak}
        low, high = wilson(found["accuracy"], found["n"])
        interval = f"{found['accuracy']:.1%} ({low:.1%} to {high:.1%})"
        say(f"| {name} | {interval} | {found['seconds']:.0f} | {found['peak']:.1f} GB |")


if __name__ == "__main__":
    main()
