"""Beam search. Shapes: B sources, W beams, T tokens, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.special_tokens import END, PAD, START
from bigmodel_cli.core.tokens import tokenizer
from bigmodel_cli.core.types import TextSpec

PENALTY = 0.6  # of short answers: scores are divided by ((5 + length) / 6)^PENALTY (Wu et al. 2016)


def beam_search(model: Any, source: Tensor, width: int, spec: TextSpec) -> tuple[Tensor, Tensor]:
    """The best answer found for each of `source` (B,S): tokens (B,T) after ``<start>``, and its mean log-probability.

    Fill follows ``<end>``; T is at most the context, and twice the source and 10. Width 1 is greedy. A source whose
    answer nothing can overtake any more costs nothing from then on.
    """
    pad, start, end = (tokenizer(spec).special[s] for s in (PAD, START, END))
    b, most = len(source), min(spec.context, 2 * source.shape[1] + 10)
    answer, mean = source.new_full((b, most), pad), torch.zeros(b, device=source.device)
    going = torch.arange(b, device=source.device)  # what is not answered yet
    cache = model.start_decoding(source).select(going.repeat_interleave(width))
    text = source.new_full((b, width, 1), start)
    # Only the first beam counts at first: equal beams would stay equal.
    score = torch.full((b, width), -torch.inf, device=source.device)
    score[:, 0] = 0
    done = torch.zeros(b, width, dtype=torch.bool, device=source.device)
    while True:
        step = model.step(text[:, :, -1].flatten(), cache).float().log_softmax(1).view(len(going), width, -1)
        step[..., [pad, start]] = -torch.inf
        ended = torch.full_like(step[:1, :1], -torch.inf)
        ended[..., pad] = 0  # a finished beam goes on with fill, at no cost
        total = score[..., None] + torch.where(done[..., None], ended, step)
        length = (text != pad).sum(2) - 1 + (~done).long()
        worth, ranked = (total / _penalty(length)[..., None]).flatten(1).topk(width)
        beam, token = ranked // step.shape[2], ranked % step.shape[2]
        score, done = total.flatten(1).gather(1, ranked), done.gather(1, beam) | (token == end)
        text = torch.cat((text.gather(1, beam[..., None].expand_as(text)), token[..., None]), 2)
        # No beam can be worth more than its score, which only sinks, over the penalty of the longest answer.
        hope = (score / _penalty(torch.tensor(most))).masked_fill(done, -torch.inf).amax(1)
        over = (done[:, 0] & (hope <= worth[:, 0])) | (text.shape[2] > most)
        best = text[over, 0, 1:]
        answer[going[over], : best.shape[1]] = best
        mean[going[over]] = score[over, 0] / (best != pad).sum(1).clamp(min=1)
        rows = (torch.arange(len(going), device=source.device)[:, None] * width + beam)[~over].flatten()
        going, text, score, done = going[~over], text[~over], score[~over], done[~over]
        if not len(going):
            return answer[:, : text.shape[2] - 1], mean
        cache = cache.select(rows)


def _penalty(length: Tensor) -> Tensor:
    return ((5 + length) / 6) ** PENALTY
