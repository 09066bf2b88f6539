"""scikit-learn's handwritten digits, which come with a dependency and so need no network."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.types import DataBundle, ImageSpec
from bigmodel_cli.data.image.arrays import ImageArrays

TEST_PER_CLASS = 36  # a fifth: 360 of 1,797


@data.register(files=())
def digits(root: Path, *, samples_per_class: Annotated[int, Field(gt=0)] | None = None) -> DataBundle:
    """1,797 real 8x8 handwritten digits (Alpaydin and Kaynak 1998), bundled: needs no network."""
    images, labels = _read()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}
    for k in range(10):
        members = order[labels[order] == k]
        rest = members[TEST_PER_CLASS:]
        if samples_per_class is not None and samples_per_class >= len(rest):
            what = f"data.samples_per_class = {samples_per_class}"
            raise InputError(what, f"digit {k} has {len(rest)} train samples, and some must be left for validation")
        parts["test"].append(members[:TEST_PER_CLASS])
        parts["train"].append(rest[:samples_per_class])
        parts["val"].append(rest[len(parts["train"][k]) :])
    # With samples_per_class, the rest of the train split is val; otherwise val is carved from train by seed.
    splits = ["train", "test"] if samples_per_class is None else ["train", "val", "test"]

    def load(split: str) -> ImageArrays:
        chosen = torch.cat(parts[split]).sort().values
        return ImageArrays(images[chosen], labels[chosen], split)

    return DataBundle(
        spec=ImageSpec(1, 8, 8, tuple(str(k) for k in range(10))),
        load={split: functools.partial(load, split) for split in splits},
        fingerprint=hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest(),
    )


@functools.cache
def _read() -> tuple[Tensor, Tensor]:
    """Images (1797,1,8,8) uint8 scaled from 0..16 to 0..255, labels (1797,) int64.

    The file is read directly from scikit-learn's folder, since importing scikit-learn takes a second.
    """
    import csv
    import gzip
    import importlib.util

    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(file, "rt") as text:
        rows = torch.tensor([[int(float(v)) for v in row] for row in csv.reader(text)])
    images = (rows[:, :64].float() * (255 / 16)).round().to(torch.uint8)
    return images.view(-1, 1, 8, 8), rows[:, 64].clone()
