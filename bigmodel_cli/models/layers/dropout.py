"""Dropout whose random numbers cost little on a CPU."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 1 << 16  # of the probability: the rate is rounded to a 65,536th
PER_DRAW = 4  # 16-bit numbers in a 64-bit one


class Dropout(nn.Dropout):
    """nn.Dropout (Srivastava et al. 2014); in training on a CPU, four elements share one random number of 64 bits.

    torch draws one for each element there, which takes longer than a small model's matrix products. The scale is that
    of the rounded rate, so the mean of the output is exactly the input.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * LEVELS)
        if not (self.training and 0 < dropped < LEVELS and is_plain(x)):
            return super().forward(x)
        last = dropped - LEVELS // 2 - 1  # of the numbers that drop an element
        keep = _draw(x).clamp_(last, last + 1).sub_(last)  # 0 or 1: a comparison takes several times as long
        return x * keep.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))


def share_draws(model: nn.Module) -> None:
    """Make the plain ``nn.Dropout`` layers of another library's `model` ours, by their class: names and hooks stay."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout


def is_plain(x: Tensor) -> bool:
    """Whether `x` is in the CPU's memory and computed at once: neither compiled, nor traced, nor in a vmap.

    What a table shared by ranks looks up is whole on each of them, but of a class of its own until it has arrived.
    """
    collectives = sys.modules.get("torch.distributed._functional_collectives")  # whose import takes seconds
    return (
        (type(x) is Tensor or (collectives is not None and type(x) is collectives.AsyncCollectiveTensor))
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _draw(x: Tensor) -> Tensor:
    """Random int16 of the shape of `x`, from all of their range: by numpy, whose generator torch's own seeds."""
    seed = int(torch.empty((), dtype=torch.int64).random_())
    numbers = np.random.SFC64(seed).random_raw(-(-x.numel() // PER_DRAW))
    return torch.from_numpy(numbers.view(np.int16))[: x.numel()].view(x.shape)
