"""Quantized weights in a checkpoint: integers with a scale, which loading converts back to fp32.

``fc.weight`` becomes ``fc.weight.packed``, ``.scale`` and ``.shape``: self-describing plain tensors. int8 holds one
number per byte, uint8 two 4-bit numbers; with ``.code`` (16,) those are indices into that table. The ``.scale`` may
be quantized in turn, around an ``.offset``. Shapes: O rows, I numbers per row, G groups of I / G numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PACKED, SCALE, SHAPE, CODE, OFFSET = ".packed", ".scale", ".shape", ".code", ".offset"
INT4_CODE = (*range(8), *range(-8, 0))
"""The signed integer that each 4-bit pattern stands for."""


def pack(numbers: Tensor, scale: Tensor, shape: torch.Size) -> dict[str, Tensor]:
    """The tensors that store a weight of `shape`: `numbers` (O,I) int8, each to be multiplied by its `scale` (O,G).

    Where all numbers are between -8 and 7 and I is even, two share a byte, the first in the low nibble.
    """
    small = numbers.shape[1] % 2 == 0 and bool(((numbers >= -8) & (numbers <= 7)).all())
    if small:
        numbers = pack_nibbles(numbers)
    return {PACKED: numbers.contiguous(), SCALE: scale.contiguous(), SHAPE: torch.tensor(shape)}


def pack_nibbles(numbers: Tensor) -> Tensor:
    """(O,I) 4-bit numbers as (O,I/2) bytes, the first of each pair in the low nibble."""
    low, high = (numbers[:, i::2].to(torch.uint8) & 15 for i in (0, 1))
    return low | high << 4


def dequantize(packed: Tensor, scale: Tensor, code: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
    """The fp32 numbers (O,I), before they are reshaped to the weight's shape.

    Raises:
        IndexError, TypeError, ValueError, RuntimeError: the tensors do not fit together.
    """
    numbers = packed
    if packed.dtype == torch.uint8:
        code = packed.new_tensor(INT4_CODE, dtype=torch.float32) if code is None else code
        if code.shape != (16,):
            raise ValueError(f"a code table of shape {tuple(code.shape)} for 4 bits")
        pairs = torch.stack((code.repeat(16), code.repeat_interleave(16)), -1)  # one lookup per byte
        numbers = F.embedding(packed.int(), pairs).flatten(1)
    rows, groups = scale.shape
    whole = (numbers.float().view(rows, groups, -1) * scale.float()[:, :, None]).view(rows, -1)
    return whole if offset is None else whole + offset


def unpack(
    packed: Tensor, scale: Tensor, shape: Tensor, code: Tensor | None = None, offset: Tensor | None = None
) -> Tensor:
    """The fp32 weight packed by :func:`pack` or :mod:`~bigmodel_cli.models.quantization.nf4`.

    Raises:
        IndexError, TypeError, ValueError, RuntimeError: the tensors do not fit together.
    """
    return dequantize(packed, scale, code, offset).reshape(shape.tolist())


def unpack_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dequantize every quantized weight of a state dict to fp32. Other tensors are returned unchanged.

    Raises:
        KeyError, IndexError, TypeError, ValueError, RuntimeError: tensors are missing, or do not fit together.
    """
    plain: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removesuffix(PACKED)
        if not _is_part(name, state):
            plain[name] = value if name == key else _dequantized(name, state)
    return plain


def _is_part(key: str, state: Mapping[str, Tensor]) -> bool:
    ends = (SCALE, SHAPE, CODE, OFFSET)
    return any(key.endswith(end) and key.removesuffix(end) + PACKED in state for end in ends)


def _dequantized(name: str, state: Mapping[str, Tensor]) -> Tensor:
    scale = _dequantized(name + SCALE, state) if name + SCALE + PACKED in state else state[name + SCALE]
    parts = state[name + PACKED], scale, state[name + SHAPE]
    return unpack(*parts, state.get(name + CODE), state.get(name + OFFSET))


class QuantizedWeight(nn.Module):
    """A quantized weight in buffers, which are saved and moved but never train. Calling it returns the fp32 weight."""

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.size = tuple(parts[SHAPE].tolist())
        for name in (PACKED, SHAPE, CODE, OFFSET, SCALE):
            if name in parts:
                self.register_buffer(name[1:], parts[name])
        if SCALE not in parts:
            self.scale = QuantizedWeight(
                {key.removeprefix(SCALE): part for key, part in parts.items() if key.startswith(SCALE)}
            )

    def forward(self) -> Tensor:
        scale = self.scale() if isinstance(self.scale, QuantizedWeight) else self.scale
        parts = self.get_buffer("packed"), scale, getattr(self, "code", None), getattr(self, "offset", None)
        return dequantize(*parts).view(self.size)
