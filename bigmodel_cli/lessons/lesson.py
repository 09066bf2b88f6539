"""What a lesson gives back, and what several of them need: the digits, and a loop small enough to read.

Shapes: B images in a batch, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.registry import data
from bigmodel_cli.core.specs import ImageSpec

SPEC = ImageSpec(1, 8, 8, tuple("0123456789"))
Draw = Callable[[Any], None]


@dataclass(frozen=True)
class Result:
    """What a lesson found.

    Args:
        says: what to see in it, a sentence an entry.
        heads, rows: the table.
        draw: draws the figure on an array of matplotlib's axes, or on one.
        panels: rows and columns of axes, and the size of each in inches.
    """

    says: Sequence[str]
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    draw: Draw | None = None
    panels: tuple[int, int] = (1, 1)
    size: tuple[float, float] = (5.0, 3.5)
    values: dict[str, Any] = field(default_factory=dict)


@functools.cache
def digits(split: str = "train") -> tuple[Tensor, Tensor]:
    """Images (B,1,8,8) in 0..1 and labels (B,) of the digits that come with bigmodel."""
    source = data.get("digits")(Path()).load[split]()
    batch = source.gather(torch.arange(len(source)))
    return batch["image"].float() / 255, batch["label"]


@functools.cache
def normalized(split: str = "train") -> tuple[Tensor, Tensor]:
    """:func:`digits` with the mean and deviation of train taken out."""
    train = digits()[0]
    images, labels = digits(split)
    return (images - train.mean()) / train.std(), labels


def batches(size: int, steps: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """`steps` random batches of `size` samples."""
    for _ in range(steps):
        chosen = torch.randperm(len(tensors[0]))[:size]
        yield tuple(tensor[chosen] for tensor in tensors)


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    drawn: Iterator[tuple[Tensor, ...]],
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> list[float]:
    """The loop in six lines: forward, loss, backward, update. Returns the loss of each step."""
    model.train()
    losses = []
    for inputs, targets in drawn:
        value = loss(model(inputs), targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The fraction of images whose largest logit is the right class."""
    return float((model.eval()(images).argmax(1) == labels).float().mean())


def percent(value: float) -> str:
    return f"{value:.1%}"
