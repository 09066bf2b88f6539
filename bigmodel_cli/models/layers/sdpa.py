"""Scaled dot-product attention, and where torch's kernels for it are slow on a CPU, another way to the same.

Shapes: B batch, H heads, T queries, S keys, E head dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bigmodel_cli.models.layers.dropout import Dropout, is_plain


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    """``F.scaled_dot_product_attention`` of q (B,H,T,E) to k and v (B,H,S,E): (B,H,T,E). See :func:`in_fp32`."""
    return in_fp32(functools.partial(F.scaled_dot_product_attention, **options), q, k, v, mask)


def in_fp32(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """``attention(q, k, v, mask)``, computed in fp32 where it is trained in bf16 on a CPU without AMX.

    There the backward pass of torch's kernel took 36 ms of gpt-nano's step, and 7 ms in fp32 (one core of an AMD EPYC
    with AVX-512's bf16), where the products of the other layers were twice as fast in bf16.
    """
    if not (q.dtype == torch.bfloat16 and q.requires_grad and is_plain(q)) or _has_amx():
        return attention(q, k, v, mask)
    mask = mask if mask is None or mask.dtype == torch.bool else mask.float()
    with torch.autocast("cpu", enabled=False):
        return attention(q.float(), k.float(), v.float(), mask).to(q.dtype)


def attend_and_drop(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: Dropout, scale: float | None = None
) -> Tensor:
    """As :func:`attend`, with the weights of the attention dropped by `dropout`.

    For that torch has no kernel on a CPU: its own way takes more passes over the weights than these, and draws a
    number for each. `mask` is True where attention is allowed, or added to the scores.
    """
    if not (dropout.training and dropout.p and is_plain(q)):
        return attend(q, k, v, mask, dropout_p=dropout.p if dropout.training else 0.0, scale=scale)
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if mask is not None and mask.dtype == torch.bool:
        # Not minus infinity: the softmax of a row that is masked as a whole would be NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return dropout(scores.softmax(-1)) @ v  # type: ignore[no-any-return]


@functools.cache
def _has_amx() -> bool:
    return torch.cpu._is_amx_tile_supported()
