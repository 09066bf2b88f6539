"""Random numbers that depend only on (seed, epoch, index): not on order, batch, worker or rank."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.device_constant import device_constant
from bigmodel_cli.core.types import SampleKey

MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A 32-bit avalanche hash ("lowbias32", Wellons 2018) in int64, so that products do not overflow."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD & MASK
    x = (x ^ (x >> 15)) * 0x735A2D97 & MASK
    return x ^ (x >> 15)


def uniforms(key: SampleKey, *streams: int) -> Tensor:
    """(S,B) float32 in [0, 1): one number per stream and sample in this epoch, in one pass."""
    offsets = tuple(0x9E3779B9 * (stream + 1) & MASK for stream in streams)
    first = device_constant(offsets, torch.int64, key.indices.device)
    x = _mix((key.indices.long() + first[:, None]) & MASK)
    x = _mix(x ^ (key.epoch * 0x85EBCA6B & MASK))
    x = _mix((x + (key.seed * 0xC2B2AE35 & MASK)) & MASK)  # masked in Python first, since a large seed overflows int64
    return (x >> 8).float() / (1 << 24)


def uniform(key: SampleKey, stream: int) -> Tensor:
    """(B,) float32 in [0, 1): one number of `stream` per sample in this epoch."""
    return uniforms(key, stream)[0]
