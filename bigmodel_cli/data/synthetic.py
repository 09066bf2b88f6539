"""Synthetic data of any size, for planning and benchmarks, where only shapes matter. Nothing is stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bigmodel_cli.core.keyed_random import uniforms
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.special_tokens import SPECIALS
from bigmodel_cli.core.types import Batch, DataBundle, ImageSpec, SampleKey, TextSpec
from bigmodel_cli.data.text.windows import Context

PositiveInt = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class RandomTokens:
    """`count` windows of 2 x `context` token ids, each determined by its index."""

    count: int
    context: int
    vocabulary: int
    split: str

    def __len__(self) -> int:
        return self.count

    def gather(self, indices: Tensor) -> Batch:
        drawn = uniforms(SampleKey(0, self.split == "val", indices), *range(2 * self.context)).t()
        length = torch.full((len(indices),), self.context)
        return {"tokens": (drawn * self.vocabulary).int(), "length": length, "index": indices}

    def name(self, index: int) -> str:
        return f"{self.split}[{index}]"


@dataclass(frozen=True)
class RandomImages:
    """`count` labelled noise images (C,side,side) uint8, each determined by its index."""

    count: int
    channels: int
    side: int
    classes: int
    split: str

    def __len__(self) -> int:
        return self.count

    def gather(self, indices: Tensor) -> Batch:
        key = SampleKey(0, self.split == "val", indices)
        drawn = uniforms(key, *range(self.channels * self.side**2)).t()
        images = (drawn * 256).to(torch.uint8).view(-1, self.channels, self.side, self.side)
        label = (uniforms(key, 1 << 20)[0] * self.classes).long()
        return {"image": images, "label": label, "index": indices}

    def name(self, index: int) -> str:
        return f"{self.split}[{index}]"


@data.register(files=())
def synthetic_text(
    root: Path,
    *,
    vocabulary: Annotated[int, Field(ge=8, le=1 << 20)] = 50257,
    context: Context = 1024,
    tokens: Annotated[int, Field(gt=0, description="in the train split")] = 1 << 20,
) -> DataBundle:
    """Random tokens, as many as you ask for: for `plan` and speed measurements, without a file."""
    spec = TextSpec("word", (*SPECIALS, *(f"w{i}" for i in range(vocabulary - len(SPECIALS)))), context)
    count = max(1, tokens // context)
    return DataBundle(
        spec,
        {
            "train": lambda: RandomTokens(count, context, vocabulary, "train"),
            "val": lambda: RandomTokens(max(1, min(count // 10, 64)), context, vocabulary, "val"),
        },
        f"synthetic {vocabulary} {context} {tokens}",
    )


@data.register(files=(), formerly=("synthetic_pictures",))
def synthetic_images(
    root: Path,
    *,
    size: Annotated[int, Field(ge=8, le=2048)] = 224,
    channels: Annotated[int, Field(ge=1, le=16)] = 3,
    classes: Annotated[int, Field(ge=2, le=1 << 16)] = 1000,
    count: Annotated[int, Field(gt=0, description="in the train split; ImageNet's by default")] = 1_281_167,
) -> DataBundle:
    """Random images, as many as you ask for: for `plan` and speed measurements, without a file."""
    spec = ImageSpec(channels, size, size, tuple(f"class{i}" for i in range(classes)))
    return DataBundle(
        spec,
        {
            "train": lambda: RandomImages(count, channels, size, classes, "train"),
            "val": lambda: RandomImages(max(classes, min(count // 10, 512)), channels, size, classes, "val"),
        },
        f"synthetic {size} {channels} {classes} {count}",
    )
