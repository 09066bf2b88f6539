"""Constants on a device: each transfer from the host to a GPU waits for it, so a step must not make one."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache(64)
def device_constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`values` as a tensor (N,) on `device`, kept for the next call. Do not change it in place."""
    with torch.inference_mode(False):  # an inference tensor, kept during evaluation, would fail in training
        return torch.tensor(values, dtype=dtype, device=device)
