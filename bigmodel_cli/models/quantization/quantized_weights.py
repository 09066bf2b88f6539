"""Weights in fewer bits inside a checkpoint: whole numbers with a scale, unpacked to fp32 by whatever opens it.

``fc.weight`` becomes ``fc.weight.packed``, ``.scale`` and ``.shape``: plain tensors that describe themselves.
int8 holds a number a byte, uint8 two numbers of 4 bits; with ``.code`` (16,) those are places in this table. A
``.scale`` may be packed itself, around an ``.offset``. Shapes: O rows, I numbers a row, G groups of I / G numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PACKED, SCALE, SHAPE, CODE, OFFSET = ".packed", ".scale", ".shape", ".code", ".offset"
SIGNED = (*range(8), *range(-8, 0))
"""What 4 bits stand for as a number with a sign."""


def pack(numbers: Tensor, scale: Tensor, shape: torch.Size) -> dict[str, Tensor]:
    """The parts to store a weight of `shape` as: `numbers` (O,I) int8, each times its `scale` (O,G).

    Numbers between -8 and 7 with I even are stored two a byte, the first in the low half.
    """
    small = numbers.shape[1] % 2 == 0 and bool(((numbers >= -8) & (numbers <= 7)).all())
    if small:
        numbers = two_a_byte(numbers)
    return {PACKED: numbers.contiguous(), SCALE: scale.contiguous(), SHAPE: torch.tensor(shape)}


def two_a_byte(numbers: Tensor) -> Tensor:
    """(O,I) numbers of 4 bits as (O,I/2) bytes, the first of two in the low half."""
    low, high = (numbers[:, i::2].to(torch.uint8) & 15 for i in (0, 1))
    return low | high << 4


def numbers_of(packed: Tensor, scale: Tensor, code: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
    """(O,I) fp32: what the parts stand for, before it has its shape.

    Raises:
        IndexError, TypeError, ValueError, RuntimeError: the parts do not fit each other.
    """
    numbers = packed
    if packed.dtype == torch.uint8:
        code = packed.new_tensor(SIGNED, dtype=torch.float32) if code is None else code
        if code.shape != (16,):
            raise ValueError(f"a table of shape {tuple(code.shape)} for 4 bits")
        pairs = torch.stack((code.repeat(16), code.repeat_interleave(16)), -1)  # one look-up a byte
        numbers = F.embedding(packed.int(), pairs).flatten(1)
    rows, groups = scale.shape
    whole = (numbers.float().view(rows, groups, -1) * scale.float()[:, :, None]).view(rows, -1)
    return whole if offset is None else whole + offset


def unpack(
    packed: Tensor, scale: Tensor, shape: Tensor, code: Tensor | None = None, offset: Tensor | None = None
) -> Tensor:
    """The fp32 weight of parts that :func:`pack` or :mod:`~bigmodel_cli.models.quantization.nf4` made.

    Raises:
        IndexError, TypeError, ValueError, RuntimeError: the parts do not fit each other.
    """
    return numbers_of(packed, scale, code, offset).reshape(shape.tolist())


def unpacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of fp32 weights, whatever its weights were stored in. Without packed ones it comes back as it is.

    Raises:
        KeyError, IndexError, TypeError, ValueError, RuntimeError: parts are missing, or do not fit each other.
    """
    whole: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removesuffix(PACKED)
        if not _is_part(name, state):
            whole[name] = value if name == key else _whole(name, state)
    return whole


def _is_part(key: str, state: Mapping[str, Tensor]) -> bool:
    ends = (SCALE, SHAPE, CODE, OFFSET)
    return any(key.endswith(end) and key.removesuffix(end) + PACKED in state for end in ends)


def _whole(name: str, state: Mapping[str, Tensor]) -> Tensor:
    scale = _whole(name + SCALE, state) if name + SCALE + PACKED in state else state[name + SCALE]
    parts = state[name + PACKED], scale, state[name + SHAPE]
    return unpack(*parts, state.get(name + CODE), state.get(name + OFFSET))


class Packed(nn.Module):
    """The parts of a weight as buffers: they are saved and moved, and never train. Called, it is the fp32 weight."""

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.size = tuple(parts[SHAPE].tolist())
        for name in (PACKED, SHAPE, CODE, OFFSET, SCALE):
            if name in parts:
                self.register_buffer(name[1:], parts[name])
        if SCALE not in parts:
            self.scale = Packed({key.removeprefix(SCALE): part for key, part in parts.items() if key.startswith(SCALE)})

    def forward(self) -> Tensor:
        scale = self.scale() if isinstance(self.scale, Packed) else self.scale
        parts = self.get_buffer("packed"), scale, getattr(self, "code", None), getattr(self, "offset", None)
        return numbers_of(*parts).view(self.size)
