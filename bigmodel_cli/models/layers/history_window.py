"""The latest items of a history, for models that read a window. Shapes: B batch, S items of a user, W window."""

from __future__ import annotations

import torch
from torch import Tensor


def latest_items(history: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The latest `window` items of `history` (B,S), oldest first, then zeros (B,W); and the place of the last (B,).

    The width is the window whatever S is, so that a traced graph takes histories of any length. The place is 0 for an
    empty history.
    """
    length = (history > 0).sum(1)
    at = (length - window).clamp(min=0)[:, None] + torch.arange(window, device=history.device)
    latest = torch.where(at < length[:, None], history.gather(1, at.clamp(max=history.shape[1] - 1)), 0)
    return latest, (length.clamp(max=window) - 1).clamp(min=0)
