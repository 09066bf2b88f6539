"""Dropout whose random numbers cost little on a CPU."""

from __future__ import annotations

import sys

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
        if not (self.training and 0 < dropped < LEVELS and _is_plain(x)):
            return super().forward(x)
        return x * (_draw(x) >= dropped - LEVELS // 2).to(x.dtype).mul_(LEVELS / (LEVELS - dropped))


def _is_plain(x: Tensor) -> bool:
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
    """Random int16 of the shape of `x`, from all of their range."""
    numbers = torch.empty(-(-x.numel() // PER_DRAW), dtype=torch.int64).random_(-(1 << 63), None)
    return numbers.view(torch.int16)[: x.numel()].view(x.shape)
