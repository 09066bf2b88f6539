"""A folder of JPEG photos for benchmarks: class folders train/ and val/, about 500x375, reproducible.

python benchmarks/photos.py FOLDER [N] [--classes K] [--side 500]

Each is a real CIFAR-10 image, enlarged, with the fine texture of other real
images of its class laid over it, so that its size on disk (JPEG quality 90) and
the work of decoding it are those of a photo. N counts train; val gets a tenth more.
CIFAR-10 is read from BIGMODEL_DATA or ../shared/data. Other programs time themselves
on the folder; nothing of it goes into the repository.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

HERE = Path(__file__).resolve().parent
TEXTURES = 200  # images a class whose detail is laid over


def cifar(classes: int, count: int) -> dict[str, list[bytes]]:
    """The first images of each class, as the JPEG files they are."""
    archive = Path(os.environ.get("BIGMODEL_DATA") or HERE.parents[1] / "shared" / "data") / "cifar10-images.tar.xz"
    found: dict[str, list[tuple[str, bytes]]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = member.name.split("/")
            if member.isreg() and "train" in parts:
                content = tar.extractfile(member)
                assert content is not None
                found.setdefault(parts[-2], []).append((parts[-1], content.read()))
    return {name: [raw for _, raw in sorted(found[name])[:count]] for name in sorted(found)[:classes]}


def photo(base: bytes, texture: list[bytes], seed: int, side: int) -> bytes:
    """One photo as JPEG. Its size varies by a fifth around `side`, a third of them stand upright."""
    random = np.random.default_rng(seed)
    width = int(side * random.uniform(0.9, 1.1))
    height = width * 3 // 4
    if random.random() < 1 / 3:
        width, height = height, width
    big = max(width, height)
    image = Image.open(io.BytesIO(base)).resize((big, big), Image.Resampling.BICUBIC).crop((0, 0, width, height))
    detail = Image.new("RGB", (width, height))
    for y in range(0, height, 64):
        for x in range(0, width, 64):
            tile = Image.open(io.BytesIO(texture[random.integers(len(texture))]))
            detail.paste(tile.resize((64, 64), Image.Resampling.BICUBIC), (x, y))
    smooth = detail.filter(ImageFilter.GaussianBlur(4))
    mixed = np.asarray(image, np.float32) + 0.7 * (np.asarray(detail, np.float32) - np.asarray(smooth, np.float32))
    out = io.BytesIO()
    grain = random.normal(0, 4, (height, width, 1)).astype(np.float32)  # a sensor's noise
    Image.fromarray((mixed + grain).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def write(folder: Path, name: str, images: list[bytes], first: int, counts: dict[str, int], side: int) -> None:
    """The photos of one class, of every split."""
    seed = first
    for split, count in counts.items():
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            raw = photo(images[(seed - first) % len(images)], images[:TEXTURES], seed, side)
            (folder / split / name / f"{i:05}.jpg").write_bytes(raw)
            seed += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("n", type=int, nargs="?", default=2000, help="train photos in all classes together")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--side", type=int, default=500, help="the longer side in pixels, about")
    given = parser.parse_args()
    each = {"train": -(-given.n // given.classes), "val": -(-given.n // given.classes // 10)}
    images = cifar(given.classes, min(max(sum(each.values()), TEXTURES), 5000))
    with ProcessPoolExecutor() as pool:
        jobs = [
            pool.submit(write, given.folder, name, images[name], 1_000_000 * k, each, given.side)
            for k, name in enumerate(images)
        ]
        for job in jobs:
            job.result()
    files = list(given.folder.rglob("*.jpg"))
    size = sum(f.stat().st_size for f in files) / max(len(files), 1)
    sys.stdout.write(f"{len(files)} photos in {given.folder}, {size / 1024:.0f} KiB each\n")


if __name__ == "__main__":
    main()
