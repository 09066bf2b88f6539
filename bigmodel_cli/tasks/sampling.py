"""Sample text from a language model, token by token. Shapes: B prompts, T tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bigmodel_cli.tasks.vector_products import vector_products


@dataclass(frozen=True)
class Sampling:
    """How to draw the next token.

    Args:
        temperature: divides the logits. 0 takes the most likely token.
        top_k: draw from the k most likely tokens; None: from all.
        top_p: draw from the smallest set of tokens whose probabilities sum to `top_p` (Holtzman et al. 2019).
        seed: combined with the position in the batch, seeds a generator per prompt. Prompts do not affect each other.
        repetition_penalty: divides the positive logits of tokens that occurred, and multiplies the negative ones
            (Keskar et al. 2019). 1 changes nothing.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0


def next_tokens(
    model: nn.Module, prompts: Sequence[Sequence[int]], sampling: Sampling, use_cache: bool = True
) -> Iterator[Tensor]:
    """Yield tokens (B,) after each of `prompts` endlessly, with a key-value cache. No prompt may be empty.

    When a text fills the context, its second half is encoded again and the rest is dropped. This costs about
    two tokens per token; shifting by one would encode the whole context each time. The texts beside it keep theirs.
    """
    with vector_products(model):
        yield from _next_tokens(model, prompts, sampling, use_cache)


def _next_tokens(
    model: nn.Module, prompts: Sequence[Sequence[int]], sampling: Sampling, use_cache: bool
) -> Iterator[Tensor]:
    device = next(model.parameters()).device
    context = int(model.context)  # type: ignore[arg-type]
    rows = [list(p)[-max(context - 1, 1) :] for p in prompts]
    occurred = [set(p) for p in prompts]
    generators = [torch.Generator().manual_seed(sampling.seed * 1_000_003 + i) for i in range(len(rows))]
    cache, new = None, None
    while True:
        if any(len(row) > context for row in rows):
            rows = [row[-max(context // 2, 1) :] if len(row) > context else row for row in rows]
            cache = None
        if cache is None or new is None or not use_cache:
            longest = max(map(len, rows))
            new = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
            pad = torch.tensor([longest - len(row) for row in rows], device=device)
            cache = model.new_cache(pad if pad.any() else None)  # type: ignore[operator]
        logits = model(new, cache=cache)[:, -1].float()
        if sampling.repetition_penalty != 1:
            logits = penalize(logits, occurred, sampling.repetition_penalty)
        chosen = choose(logits, sampling, generators)
        for row, seen, token in zip(rows, occurred, chosen.tolist(), strict=True):
            row.append(token)
            seen.add(token)
        new = chosen[:, None]
        yield chosen


def penalize(logits: Tensor, occurred: Sequence[set[int]], penalty: float) -> Tensor:
    """Logits (B,V) with the tokens that `occurred` in each text made less likely."""
    mask = torch.zeros_like(logits, dtype=torch.bool)
    for row, tokens in enumerate(occurred):
        mask[row, list(tokens)] = True
    return torch.where(mask, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def choose(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw a token (B,) from the logits (B,V), each by a number of its own CPU generator: the same on every device."""
    if sampling.temperature == 0:
        return logits.argmax(1)
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[1]:
        threshold = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    probability = logits.softmax(1)
    if sampling.top_p < 1:
        ranked, order = probability.sort(1, descending=True)
        # Keep the token that crosses the threshold, so that at least one remains.
        ranked = ranked.masked_fill(ranked.cumsum(1) - ranked >= sampling.top_p, 0)
        probability = torch.zeros_like(probability).scatter(1, order, ranked)
    edges = probability.double().cumsum(1)
    drawn = [torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators]  # below 1
    at = torch.stack(drawn).to(logits.device) * edges[:, -1:].nextafter(torch.zeros_like(edges[:, -1:]))
    return torch.searchsorted(edges, at, right=True)[:, 0]
