"""Time and memory before the first step on large data of one's own.

    python benchmarks/large_data.py text       # 1,000,000 rows of text in a CSV of about 126 MB
    python benchmarks/large_data.py folders    # 1,000,000 image files in 1,000 class folders: listed and fingerprinted
    python benchmarks/large_data.py pictures --archive DATA/cifar10-images.tar.xz    # 60,000 JPEGs of 32 x 32

`pictures` decodes the class folders into an empty cache, then trains on them by default: a model's name and nothing
else. `--rows N` changes the size, `--folder DIR` where the data is written (and kept). Each is measured in a process of
its own, after the data is written; the peak is the process's resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

WORDS = 30_000
STEPS = 150
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


def measure_pictures(path: Path) -> dict[str, float]:
    """Images a second: decoded into an empty cache, read back from it, and trained on with default options."""
    import torch

    from bigmodel_cli.core.recipe import DataSection
    from bigmodel_cli.core.resolve import Layer, resolve
    from bigmodel_cli.data.batches import Batches
    from bigmodel_cli.engine.build.data import load_data
    from bigmodel_cli.engine.training.assemble import assemble, execute

    section = DataSection(name="image_folder", path=str(path))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["BIGMODEL_CACHE"] = cache
        started = time.perf_counter()
        train = load_data(section).load["train"]()
        decoded = time.perf_counter() - started
        started = time.perf_counter()
        for _ in Batches(train, 128, 0).steps(0, 0):
            pass
        read = time.perf_counter() - started
        found = {"decoded/s": len(train) / decoded, "read/s": len(train) / read}
        print(json.dumps({k: round(v, 2) for k, v in found.items()}), flush=True)  # noqa: T201 (training takes longer)
        for model in ("cnn", "resnet8", "resnet20", "resnet18"):
            values = {"model": {"name": model}, "data": section.model_dump(), "train": {"max_steps": STEPS}}
            torch.manual_seed(0)
            run = assemble(resolve([Layer("benchmark", values)]).recipe)
            started = time.perf_counter()
            execute(run)  # an evaluation of val is part of it
            found[f"{model}/s"] = (STEPS * 128 + len(run.val)) / (time.perf_counter() - started)
            print(f"{model}/s {found[f'{model}/s']:.0f}", flush=True)  # noqa: T201
        return {**found, "MB": _peak()}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("text", "folders", "pictures"))
    parser.add_argument("--archive", type=Path, help="of class folders, for pictures")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("large-data"))
    parser.add_argument("--measure", action="store_true", help="measure what is written, in this process")
    given = parser.parse_args()
    names = {"text": f"{given.rows}.csv", "folders": f"{given.rows}-files", "pictures": "pictures"}
    measures = {"text": measure_text, "folders": measure_folders, "pictures": measure_pictures}
    path = given.folder / names[given.what]
    if given.measure:
        found = measures[given.what](path)
        print(json.dumps({k: round(v, 2) for k, v in found.items()}))  # noqa: T201
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists() and given.what == "pictures":
        with tarfile.open(given.archive) as archive:
            archive.extractall(path, filter="data")
    elif not path.exists():
        (write_csv if given.what == "text" else write_folders)(path, given.rows)
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--measure"], check=True)


if __name__ == "__main__":
    main()
