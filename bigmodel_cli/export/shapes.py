"""The dynamic dimensions of a model's inputs in an exported file."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.networks import LimitedContext


def tokens(x: Tensor) -> bool:
    """Whether `x` holds token ids (B,T), whose length is dynamic."""
    return x.dim() == 2 and not x.is_floating_point()


def pixels(x: Tensor) -> bool:
    """Whether `x` holds raw images (B,H,W,C), whose size is dynamic."""
    return x.dtype == torch.uint8 and x.dim() == 4


def dynamic_shapes(
    model: nn.Module, example: tuple[Tensor, ...], most: int | None = None
) -> tuple[dict[int, Any], ...]:
    """For ``torch.export``: the batch is dynamic up to `most`, the length of tokens up to the context window.

    Each input has its own length, since a translation is not as long as its source.
    """
    batch = torch.export.Dim("batch", min=1, max=most)
    longest = model.context if isinstance(model, LimitedContext) else None
    lengths = (torch.export.Dim(f"length{i}", min=1, max=longest) for i in range(len(example)))
    if most is None and any(pixels(x) for x in example):
        return ({0: batch, 1: torch.export.Dim("height", min=2), 2: torch.export.Dim("width", min=2)},)
    return tuple(
        {0: batch, 1: length} if tokens(x) else {0: batch} for x, length in zip(example, lengths, strict=False)
    )


def input_names(model: nn.Module, example: tuple[Tensor, ...]) -> list[str]:
    """Names of the inputs in the file: ``input``, or for several the model's own parameter names."""
    return ["input"] if len(example) == 1 else list(inspect.signature(model.forward).parameters)[: len(example)]
