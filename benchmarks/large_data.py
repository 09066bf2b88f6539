"""Time and memory before the first step on large data of one's own.

    python benchmarks/large_data.py text       # 1,000,000 rows of text in a CSV of about 126 MB
    python benchmarks/large_data.py folders    # 1,000,000 image files in 1,000 class folders: listed and fingerprinted

`--rows N` changes the size, `--folder DIR` where the data is written (and kept). Each is measured in a process of its
own, after the data is written; the peak is the process's resident memory.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

WORDS = 30_000
TEXT_WORDS = 10


def write_csv(path: Path, rows: int) -> None:
    """Rows of words by Zipf's law, with commas, quotation marks and two labels."""
    draw = random.Random(0)
    words = [f"{draw.choice('bcdfgklmnprstv')}{draw.choice('aeiou')}{i:x}" for i in range(WORDS)]
    weights = [1 / (i + 10) for i in range(WORDS)]
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for start in range(0, rows, 10_000):
            many = draw.choices(words, weights, k=10_000 * TEXT_WORDS)
            for i in range(min(10_000, rows - start)):
                text = " ".join(many[i * TEXT_WORDS : (i + 1) * TEXT_WORDS])
                file.write(f'"{text}, and ""more"" of it that makes the row as long as a review\'s sentence",{i % 2}\n')


def write_folders(root: Path, files: int, classes: int = 1000) -> None:
    for k in range(classes):
        folder = root / f"class{k:04}"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(files // classes):
            (folder / f"{i:06}.jpg").write_bytes(b"x" * (i % 7 + 1))


def measure_text(path: Path) -> dict[str, float]:
    """Until the first batch is gathered, as training does it."""
    import torch

    from bigmodel_cli.core.recipe import DataSection
    from bigmodel_cli.core.registry import data
    from bigmodel_cli.data.batches import Batches
    from bigmodel_cli.engine.build.data import train_and_val

    before, started, cpu = _peak(), time.perf_counter(), time.process_time()
    bundle = data.get("labelled_file")(path.parent, path=str(path))
    read = time.perf_counter() - started
    train, val = train_and_val(bundle, DataSection(name="labelled_file"))
    torch.manual_seed(0)
    next(iter(Batches(train, 128, 0).steps(0, 0)))
    return {
        "read": read,
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "MB": _peak() - before,
        "rows": len(train) + len(val),
    }


def measure_folders(path: Path) -> dict[str, float]:
    from bigmodel_cli.data.user_data.image_discovery import list_images

    before, started, cpu = _peak(), time.perf_counter(), time.process_time()
    listing = list_images(path)
    listed = time.perf_counter() - started
    listing.fingerprint()
    seconds = time.perf_counter() - started
    return {
        "listed": listed,
        "seconds": seconds,
        "cpu": time.process_time() - cpu,
        "MB": _peak() - before,
        "files": len(listing.splits["train"]),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("text", "folders"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("large-data"))
    parser.add_argument("--measure", action="store_true", help="measure what is written, in this process")
    given = parser.parse_args()
    path = given.folder / (f"{given.rows}.csv" if given.what == "text" else f"{given.rows}-files")
    if given.measure:
        found = measure_text(path) if given.what == "text" else measure_folders(path)
        print(json.dumps({k: round(v, 2) for k, v in found.items()}))  # noqa: T201
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        (write_csv if given.what == "text" else write_folders)(path, given.rows)
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--measure"], check=True)


if __name__ == "__main__":
    main()
