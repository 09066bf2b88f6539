"""Beam search. Shapes: B sources, W beams, T tokens, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PENALTY = 0.6  # of short answers: scores are divided by ((5 + length) / 6)^PENALTY (Wu et al. 2016)


def beam_search(model: Any, source: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The best answer found for each of `source` (B,S): tokens (B,T) after ``<start>``, and its mean log-probability.

    Fill follows ``<end>``; T is at most the context. Width 1 is greedy.
    """
    b, context = len(source), model.context
    memory, mask = model.encode(source)
    memory, mask = memory.repeat_interleave(width, 0), mask.repeat_interleave(width, 0)
    text = torch.full((b * width, 1), model.start, device=source.device)
    # Only the first beam counts at first: equal beams would stay equal.
    score = torch.full((b, width), -torch.inf, device=source.device)
    score[:, 0] = 0
    done = torch.zeros(b, width, dtype=torch.bool, device=source.device)
    rows = torch.arange(b, device=source.device)[:, None] * width
    for _ in range(min(context, 2 * source.shape[1] + 10)):
        logits = model.head(model.decode(text, memory, mask)[:, -1]).float()
        step = logits.log_softmax(1).view(b, width, -1)
        step[..., [model.pad, model.start]] = -torch.inf
        ended = torch.full_like(step[:1, :1], -torch.inf)
        ended[..., model.pad] = 0  # a finished beam goes on with fill, at no cost
        step = torch.where(done[..., None], ended, step)
        total = score[..., None] + step
        length = (text != model.pad).sum(1).view(b, width, 1) + (~done)[..., None].long() - 1
        ranked = (total / ((5 + length) / 6) ** PENALTY).flatten(1).topk(width).indices
        beam, token = ranked // step.shape[2], ranked % step.shape[2]
        score = total.flatten(1).gather(1, ranked)
        done = done.gather(1, beam) | (token == model.end)
        text = torch.cat((text[(rows + beam).flatten()], token.view(-1, 1)), 1)
        if done.all():
            break
    best = text.view(b, width, -1)[:, 0, 1:]
    return best, score[:, 0] / (best != model.pad).sum(1).clamp(min=1)
