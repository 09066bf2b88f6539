"""Softmax over a catalogue of items: whole, over the items of the batch, or over sampled items.

Shapes: B batch, L window, D width, I items, C candidates, S items of a user, N targets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bigmodel_cli.models.layers.chunked_loss import losses_where

MAX_CHUNK_LOGITS = 1 << 24  # 64 MB in fp32
NEVER = -1e9  # the logit of a known positive among the negatives

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (N,K), labels (N,)) -> (N,)."""


def full_softmax(x: Tensor, targets: Tensor, vectors: Tensor, loss: Loss) -> Tensor:
    """Losses (B,L) of states `x` (B,L,D) against `targets` (B,L) over all `vectors` (I,D); 0 where a target is < 0."""

    def part(states: Tensor, labels: Tensor) -> Tensor:
        return loss((states @ vectors.t()).float(), labels.clamp(min=0))

    def of(states: Tensor, labels: Tensor) -> Tensor:
        return _in_chunks(part, max(1, MAX_CHUNK_LOGITS // len(vectors)), states, labels)

    return losses_where(targets >= 0, of, x, targets)


def candidate_softmax(
    x: Tensor, targets: Tensor, own: Tensor, ids: Tensor, vectors: Tensor, log_q: Tensor, seen: Tensor, loss: Loss
) -> Tensor:
    """As :func:`full_softmax`, over the target and the candidates `ids` (C,), with their `vectors` (C,D).

    `own` (B,L,D) are the vectors of the targets. Subtracting `log_q` (C,), the log of each candidate's probability of
    being drawn, makes the sum over candidates an unbiased estimate of that over the catalogue (Bengio and Senecal
    2008). What the user has interacted with, `seen` (B,S) from 1 with 0 for padding, is never a negative.
    """

    def of(positive: Tensor, negatives: Tensor) -> Tensor:
        logits = torch.cat([positive, negatives.sub_(log_q)], 1)
        return loss(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))

    return _against_candidates(x, targets, own, ids, vectors, seen, of)


def candidate_gbce(
    x: Tensor, targets: Tensor, own: Tensor, ids: Tensor, vectors: Tensor, seen: Tensor, items: int, calibration: float
) -> Tensor:
    """gSASRec's loss in place of the softmax (Petrov and Macdonald 2023): -log s(p)^b - mean over C of log(1 - s(n)).

    s is the sigmoid, p the logit of the target, n one of a candidate. With a = C / (`items` - 1), the exponent b is
    a (t (1 - 1/a) + 1/a); `calibration` t of 0 is the plain binary cross-entropy, whose scores are overconfident, and 1
    makes up for the sampling.
    """
    rate = min(len(ids) / max(items - 1, 1), 1.0)
    power = rate * (calibration * (1 - 1 / rate) + 1 / rate)

    def of(positive: Tensor, negatives: Tensor) -> Tensor:
        return -power * F.logsigmoid(positive[:, 0]) - F.logsigmoid(-negatives).mean(1)

    return _against_candidates(x, targets, own, ids, vectors, seen, of)


def _against_candidates(
    x: Tensor, targets: Tensor, own: Tensor, ids: Tensor, vectors: Tensor, seen: Tensor, of: Loss
) -> Tensor:
    """`of` the logits of each target (N,1) and of the candidates (N,C), where a known positive is NEVER: (B,L)."""
    real = targets >= 0
    known, row = _is_known(ids, seen), real.nonzero()[:, 0]  # (B,C), (N,)

    def part(states: Tensor, positives: Tensor, labels: Tensor, row: Tensor) -> Tensor:
        hidden = known[row].logical_or_(ids == labels[:, None])
        negatives = (states @ vectors.t()).float().masked_fill_(hidden, NEVER)  # (n,C), changed in place: it is large
        return of((states * positives).sum(1, keepdim=True).float(), negatives)

    found = _in_chunks(part, max(1, MAX_CHUNK_LOGITS // len(ids)), x[real], own[real], targets[real], row)
    return torch.zeros(targets.shape, dtype=found.dtype, device=x.device).masked_scatter(real, found)


def batch_candidates(targets: Tensor, counts: Tensor, most: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct items among `targets` (B,L), at most `most`, and the log-probability of each to be among them.

    `counts` (I,) are the items' train interactions. A batch of n targets has an item of share p with probability
    1 - (1 - p)^n (the logQ of Yi et al. 2019, for distinct items).
    """
    real = targets[targets >= 0]
    ids = real.unique()
    share = (counts[ids] / counts.sum()).clamp(1e-12, 1 - 1e-7)
    log_q = (-torch.expm1(len(real) * torch.log1p(-share))).clamp(min=1e-12).log()
    if len(ids) > most:
        generator = torch.Generator().manual_seed(int(noise.sum()))
        chosen = torch.randperm(len(ids), generator=generator)[:most].to(ids.device)
        ids, log_q = ids[chosen], log_q[chosen] + torch.tensor(most / len(ids)).log()
    return ids, log_q


def uniform_candidates(items: int, count: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """`count` random items of a catalogue, seeded by `noise` (B,), and their log-probability of being drawn."""
    generator = torch.Generator().manual_seed(int(noise.sum()))
    ids = torch.randint(items, (min(count, items),), generator=generator).unique()
    log_q = torch.full((len(ids),), min(count / items, 1.0), dtype=torch.float32).log()
    return ids.to(noise.device), log_q.to(noise.device)


def _is_known(ids: Tensor, seen: Tensor) -> Tensor:
    """(B,C) whether each of `ids` (C,) is among a row of `seen` (B,S)."""
    if not seen.shape[1]:
        return torch.zeros(len(seen), len(ids), dtype=torch.bool, device=ids.device)
    rows = seen.sort(1).values.contiguous()
    wanted = (ids + 1).expand(len(seen), -1).contiguous()
    place = torch.searchsorted(rows, wanted).clamp(max=rows.shape[1] - 1)
    return rows.gather(1, place) == wanted


def _in_chunks(part: Callable[..., Tensor], rows: int, *tensors: Tensor) -> Tensor:
    """`part` of `tensors`, `rows` of them at a time; what does not fit one chunk is recomputed in the backward pass."""
    if len(tensors[0]) <= rows:
        return part(*tensors)
    chunks = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    return torch.cat([checkpoint(part, *chunk, use_reentrant=False) for chunk in chunks])  # type: ignore[misc]
