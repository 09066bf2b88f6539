"""Weights in fewer bits inside a checkpoint: whole numbers with a scale, unpacked to fp32 by whatever opens it.

``fc.weight`` becomes ``fc.weight.packed`` and ``fc.weight.scale``: plain tensors that describe themselves.
int8 holds a number a byte, uint8 two numbers of 4 bits. Shapes: O rows, I numbers a row, G groups of I / G numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PACKED, SCALE, SHAPE = ".packed", ".scale", ".shape"


def pack(numbers: Tensor, scale: Tensor, shape: torch.Size) -> dict[str, Tensor]:
    """The parts to store a weight of `shape` as: `numbers` (O,I) int8, each times its `scale` (O,G).

    Numbers between -8 and 7 with I even are stored two a byte, the first in the low half.
    """
    small = numbers.shape[1] % 2 == 0 and bool(((numbers >= -8) & (numbers <= 7)).all())
    if small:
        low, high = (numbers[:, i::2].to(torch.uint8) & 15 for i in (0, 1))
        numbers = low | high << 4
    return {PACKED: numbers.contiguous(), SCALE: scale.contiguous(), SHAPE: torch.tensor(shape)}


def unpack(packed: Tensor, scale: Tensor, shape: Tensor) -> Tensor:
    """The fp32 weight of parts that :func:`pack` made.

    Raises:
        IndexError, TypeError, ValueError, RuntimeError: the parts do not fit each other.
    """
    numbers = packed
    if packed.dtype == torch.uint8:
        pairs = torch.stack((packed & 15, packed >> 4), -1).to(torch.int8)
        numbers = torch.where(pairs > 7, pairs - 16, pairs).flatten(1)
    rows, groups = scale.shape
    whole = numbers.float().view(rows, groups, -1) * scale.float()[:, :, None]
    return whole.reshape(shape.tolist())


def unpacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of fp32 weights, whatever its weights were stored in. Without packed ones it comes back as it is.

    Raises:
        KeyError, IndexError, TypeError, ValueError, RuntimeError: parts are missing, or do not fit each other.
    """
    whole: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith(PACKED):
            name = key.removesuffix(PACKED)
            whole[name] = unpack(value, state[name + SCALE], state[name + SHAPE])
        elif not any(key.endswith(end) and key.removesuffix(end) + PACKED in state for end in (SCALE, SHAPE)):
            whole[key] = value
    return whole
