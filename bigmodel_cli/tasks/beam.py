"""Beam search. Shapes: B sources, W beams, T tokens, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.special_tokens import END, PAD, START
from bigmodel_cli.core.tokenizers.framing import conventions
from bigmodel_cli.core.tokenizers.tokens import tokenizer
from bigmodel_cli.core.types import TextSpec

BEYOND_SOURCE = 50
PENALTY = 0.6  # length penalty: scores are divided by ((5 + length) / 6)^PENALTY (Wu et al. 2016)


def beam_search(model: Any, source: Tensor, width: int, spec: TextSpec) -> tuple[Tensor, Tensor]:
    """Decode each of `source` (B,S) with beam search: tokens (B,T) after ``<start>``, and mean log-probabilities (B,).

    Padding follows ``<end>``. An answer has at most :func:`length_limits` tokens, whatever else is in the batch; one
    that meets its limit may lack ``<end>``. Width 1 is greedy decoding. A source is finished, and removed from the
    batch, once no other beam can beat its best one.
    """
    pad, start, end = (tokenizer(spec).special[s] for s in (PAD, START, END))
    never = [token for token in (pad, start) if token != end]  # BART starts with the token that ends
    forced = list(conventions(spec).target_before)
    b, limit = len(source), length_limits(source, spec)
    output, mean = source.new_full((b, int(limit.max())), pad), torch.zeros(b, device=source.device)
    active = torch.arange(b, device=source.device)  # indices of unfinished sources
    cache = model.start_decoding(source).select(active.repeat_interleave(width))
    tokens = source.new_full((b, width, 1), start)
    # Start with one beam: identical beams would stay identical.
    score = torch.full((b, width), -torch.inf, device=source.device)
    score[:, 0] = 0
    done = torch.zeros(b, width, dtype=torch.bool, device=source.device)
    while True:
        step = model.step(tokens[:, :, -1].flatten(), cache).float().log_softmax(1).view(len(active), width, -1)
        if len(forced) >= tokens.shape[2]:  # what every target begins with
            step = torch.full_like(step, -torch.inf)
            step[..., forced[tokens.shape[2] - 1]] = 0
        else:
            step[..., never] = -torch.inf
        ended = torch.full_like(step[:1, :1], -torch.inf)
        ended[..., pad] = 0  # a finished beam continues with padding at no cost
        total = score[..., None] + torch.where(done[..., None], ended, step)
        length = (tokens[:, :, 1:] != pad).sum(2) + (~done).long()
        normalized, ranked = (total / _penalty(length)[..., None]).flatten(1).topk(width)
        beam, token = ranked // step.shape[2], ranked % step.shape[2]
        score, done = total.flatten(1).gather(1, ranked), done.gather(1, beam) | (token == end)
        tokens = torch.cat((tokens.gather(1, beam[..., None].expand_as(tokens)), token[..., None]), 2)
        # Upper bound of an unfinished beam: its score can only fall, and the longest output has the largest divisor.
        bound = (score / _penalty(limit[active])[:, None]).masked_fill(done, -torch.inf).amax(1)
        finished = (done[:, 0] & (bound <= normalized[:, 0])) | (tokens.shape[2] > limit[active])
        best = tokens[finished, 0, 1:]
        output[active[finished], : best.shape[1]] = best
        mean[active[finished]] = score[finished, 0] / (best != pad).sum(1).clamp(min=1)
        rows = (torch.arange(len(active), device=source.device)[:, None] * width + beam)[~finished].flatten()
        active, tokens, score, done = active[~finished], tokens[~finished], score[~finished], done[~finished]
        if not len(active):
            return output[:, : tokens.shape[2] - 1], mean
        cache = cache.select(rows)


def length_limits(source: Tensor, spec: TextSpec) -> Tensor:
    """(B,) int64: the most tokens of each answer: 50 more than its source (Vaswani et al. 2017), within the context."""
    pad = tokenizer(spec).special[PAD]
    return ((source != pad).sum(1) + BEYOND_SOURCE).clamp(max=spec.context)


def _penalty(length: Tensor) -> Tensor:
    return ((5 + length) / 6) ** PENALTY
