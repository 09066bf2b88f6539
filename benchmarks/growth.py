"""How seconds and memory grow with samples, classes, tokens and width at 1, 10 and 100 times; RESULTS-growth.md.

    python benchmarks/growth.py [--only samples classes ...]      some 8 minutes on 2 quiet cores

Every figure is one real command on files written for it. To leave its start-up out, each command runs in a fork of a
process that has imported torch, and what the same command takes for a tenth of the least work is subtracted. The
exponent is that from 10 to 100 times: 1 where ten times the work costs ten times as much, 0 where it costs the same.
What grows by less than twice SMALLEST in all has none; where the growth to 10 times is less, it counts as that.

The start of a command has a peak of memory of its own, some 20 MB above what it keeps. Growth below that peak does not
show, so that a cost in proportion seems to grow faster. The axes of tokens and width begin where it is a small part.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
TIMES = (0.1, 1, 10, 100)
MOST = 1.05
SMALLEST = {"seconds": 0.25, "MB": 32.0}
"""What two runs of one command differ by: allocators keep some memory, and processors have other work."""
COMMANDS = ("train", "eval", "predict", "inspect")


@dataclass(frozen=True)
class Growing:
    """What grows: `write(place, n)` makes the data; the words of each command are by its name in `commands`.

    In them {data} is the data, {run} the run folder of `train`, and {n} the size; a command that has no words is not
    measured.
    """

    what: str
    first: int
    write: Callable[[Path, int], None]
    commands: dict[str, str]


def words_of(draw: random.Random, count: int, length: int) -> list[str]:
    """`count` texts of `length` words, which come from 2,000 that are equally frequent."""
    known = [f"w{i:x}" for i in range(2000)]
    return [" ".join(draw.choices(known, k=length)) for _ in range(count)]


def write_texts(place: Path, rows: int, length: int = 20, classes: int = 2) -> None:
    """A table of texts with labels, and a text file with a line for each."""
    draw = random.Random(0)
    texts = words_of(draw, rows, length)
    labels = [f"c{i % classes}" for i in range(rows)]
    draw.shuffle(labels)
    table = "".join(f"{text},{label}\n" for text, label in zip(texts, labels, strict=True))
    (place / "data.csv").write_text("text,label\n" + table)
    (place / "lines.txt").write_text("\n".join(texts) + "\n")


def png(pixels: bytes, side: int) -> bytes:
    """A grey image of `side` x `side` as a PNG file (W3C, Portable Network Graphics)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    rows = b"".join(b"\0" + pixels[i : i + side] for i in range(0, side * side, side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def write_images(place: Path, count: int, classes: int = 10, side: int = 16) -> None:
    """Class folders of small grey images, all different."""
    draw = random.Random(0)
    for k in range(classes):
        (place / "images" / f"c{k}").mkdir(parents=True)
    for i in range(count):
        (place / "images" / f"c{i % classes}" / f"{i}.png").write_bytes(png(draw.randbytes(side * side), side))


def write_corpus(place: Path, tokens: int) -> None:
    """A text of about `tokens` characters."""
    lines = words_of(random.Random(0), max(tokens // 40, 20), 8)
    (place / "corpus.txt").write_text("\n".join(lines) + "\n")


TEXT = {
    "train": "train text-cnn --data {data}/data.csv --epochs 1 --set model.width=16 --set model.filters=8 --lr 1e-3",
    "eval": "eval {run} --split train",
    "predict": "predict {run} {data}/lines.txt --json",
    "inspect": "data inspect {data}/data.csv",
}
LONG = " --set data.context=16384 --batch-size 32"
IMAGES = {
    "train": "train mlp --data {data}/images --epochs 1 --batch-size 64 --set model.hidden=[32]",
    "eval": "eval {run} --split train",
    "predict": "predict {run} {data}/images --json",
    "inspect": "data inspect {data}/images",
}
WIDTH = {**IMAGES, "train": IMAGES["train"].replace("[32]", "[{n}]"), "inspect": "checkpoint show {run}/best.pt"}
CORPUS = {
    "train": "train gpt --data {data}/corpus.txt --epochs 1 --set model.layers=1 --set model.width=32 "
    "--set model.heads=2 --set data.context=64 --batch-size 32",
    "eval": "eval {run} --split train",
    "inspect": "data inspect {data}/corpus.txt",
}
GROWING = [
    Growing("samples: texts of 20 words", 500, write_texts, TEXT),
    Growing("samples: images of 16x16", 200, write_images, IMAGES),
    Growing("classes, of 5,000 texts", 20, lambda place, n: write_texts(place, 5000, 20, n), TEXT),
    Growing(
        "tokens of each of 500 texts", 100, lambda place, n: write_texts(place, 500, n),
        {**TEXT, "train": TEXT["train"] + LONG},
    ),
    Growing("tokens of one text (gpt)", 20_000, write_corpus, CORPUS),
    Growing("width of the one hidden layer of an mlp", 600, lambda place, _: write_images(place, 2000), WIDTH),
]  # fmt: skip


def command(words: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and peak MB of a command of bigmodel in a fork of this process.

    Raises:
        SystemExit: it failed.
    """
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        sys.stdout.flush()
        clock = time.perf_counter()
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = 1
            with contextlib.suppress(BaseException):
                code = run_here(words)
            os._exit(code)
        _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - clock
    if status:
        sys.exit(f"bigmodel {' '.join(words)}\n{(folder / 'out').read_text()[-2000:]}{(folder / 'err').read_text()}")
    return seconds, usage.ru_maxrss / 1024


def run_here(words: list[str]) -> int:
    from bigmodel_cli import cli

    sys.argv = ["bigmodel", *words]
    try:
        cli._run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def measure(growing: Growing, place: Path) -> dict[str, list[tuple[float, float]]]:
    """(seconds, MB) of each command at each of TIMES."""
    found: dict[str, list[tuple[float, float]]] = {}
    for times in TIMES:
        data = place / f"{times}"
        data.mkdir()
        n = max(round(growing.first * times), 2)
        growing.write(data, n)
        for name in COMMANDS:
            if name not in growing.commands:
                continue
            given = {"data": data, "run": data / "run", "n": n}
            words = [word.format(**given) for word in growing.commands[name].split()]
            if name == "train":
                words += ["--out", str(data / "run"), "--schedule", "constant"]
            runs = [command(words, data) for _ in range(1 if name == "train" else 2)]
            found.setdefault(name, []).append((min(s for s, _ in runs), statistics.median(m for _, m in runs)))
    return found


def exponent(ten: float, hundred: float, unit: str) -> tuple[float, bool] | None:
    """That from 10 to 100 times, and whether it is the least that it can be, since the growth to 10 times is lost in
    noise and counts as SMALLEST; None where the whole growth is."""
    least = SMALLEST[unit]
    return None if hundred < 2 * least else (math.log10(hundred / max(ten, least)), ten < least)


def rows(growing: Growing, found: dict[str, list[tuple[float, float]]]) -> tuple[list[str], list[str]]:
    """The rows of a table, and what grows too fast."""
    lines, faults = [], []
    for name, pairs in found.items():
        shown: list[str] = []
        for unit, (start, *values) in zip(("seconds", "MB"), zip(*pairs, strict=True), strict=True):
            grown = [max(value - start, 0) for value in values]
            slope = exponent(grown[1], grown[2], unit)
            shown += [f"{value:,.{2 if unit == 'seconds' else 0}f}" for value in grown]
            shown.append("none" if slope is None else "at least " * slope[1] + f"{slope[0]:.2f}")
            if slope is not None and slope[0] > MOST:
                faults.append(f"{growing.what}, {name}: {unit} {slope[0]:.2f}")
        lines.append(f"| {growing.what} | {name} | {' | '.join(shown)} |")
    return lines, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the names of what grows")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS-growth.md")
    given = parser.parse_args()
    import torch
    import torchvision

    import bigmodel_cli.commands.display.progress
    import bigmodel_cli.engine.training.assemble  # noqa: F401

    clock = time.perf_counter()
    table, faults = [], []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["BIGMODEL_CACHE"] = f"{scratch}/cache"
        for i, growing in enumerate(GROWING):
            if any(part in growing.what for part in given.only):
                (place := Path(scratch) / str(i)).mkdir()
                lines, over = rows(growing, measure(growing, place))
                sys.stdout.write("\n".join(lines) + "\n")
                sys.stdout.flush()
                table, faults = table + lines, faults + over
    where = (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}; {time.perf_counter() - clock:.0f} s in all."
    )
    verdict = f"Over {MOST}: {'; '.join(faults)}." if faults else f"No exponent is over {MOST}."
    given.out.write_text("\n".join([HEAD, where, verdict, "", COLUMNS, *table, ""]))
    sys.stdout.write(json.dumps({"over": faults}) + "\n")


HEAD = """# How cost grows with the work

`python benchmarks/growth.py`: seconds and memory of real commands at 1, 10 and 100 times the work, less those at 0.1
times; the exponent from 10 to 100 times. Growth up to 0.25 s and 32 MB is lost in noise: "none" is less than twice
that in all, and "at least" counts it as that much at 10 times. Training is one epoch with its validation and its page.
The models are such that their arithmetic is proportional to what grows: a text CNN, an mlp with one hidden layer, a
gpt at a fixed context. What the page of an evaluation shows is part of `eval`.
"""
COLUMNS = (
    "| what grows | command | 1x, s | 10x | 100x | exponent | 1x, MB | 10x | 100x | exponent |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


if __name__ == "__main__":
    main()
