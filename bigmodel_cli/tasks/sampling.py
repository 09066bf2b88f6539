"""Text from a language model, a token at a time. Shapes: B prompts, T tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Args:
        temperature: the logits are divided by it; 0 takes the likeliest token.
        top_k: only among the k likeliest; None: all.
        top_p: only among the likeliest that together reach this probability (Holtzman et al. 2019).
        seed: with its place in the batch, of each prompt's own generator: the other prompts do not change its text.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0


def next_tokens(
    model: nn.Module, prompts: Sequence[Sequence[int]], how: Sampling, use_cache: bool = True
) -> Iterator[Tensor]:
    """Endless tokens (B,) after each of `prompts`, none of them empty; the model keeps its keys and values.

    Where the context is full, the last half of it is read again and the rest forgotten:
    a token then costs two on average, where sliding by one would cost the whole context.
    """
    device = next(model.parameters()).device
    context = int(model.context)  # type: ignore[arg-type]
    rows = [list(p)[-(context - 1) :] for p in prompts]
    longest = max(map(len, rows))
    text = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
    pad = torch.tensor([longest - len(row) for row in rows], device=device)
    generators = [torch.Generator().manual_seed(how.seed * 1_000_003 + i) for i in range(len(rows))]
    cache, new = None, text
    while True:
        if text.shape[1] >= context and (cache is None or cache.length + 1 > context):
            keep = max(context // 2, 1)
            pad = (pad - (text.shape[1] - keep)).clamp(min=0)
            text = text[:, -keep:]
            cache, new = None, text
        if cache is None or not use_cache:
            cache, new = model.new_cache(pad if pad.any() else None), text  # type: ignore[operator]
        logits = model(new, cache=cache)[:, -1].float()
        new = choose(logits, how, generators)[:, None]
        text = torch.cat((text, new), 1)
        yield new[:, 0]


def choose(logits: Tensor, how: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """A token (B,) of the logits (B,V), each drawn with its own generator (on the CPU: the same on every device)."""
    if how.temperature == 0:
        return logits.argmax(1)
    logits = logits / how.temperature
    if how.top_k is not None and how.top_k < logits.shape[1]:
        least = logits.topk(how.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probability = logits.softmax(1)
    if how.top_p < 1:
        ranked, order = probability.sort(1, descending=True)
        # The token that crosses the threshold stays, so one always does.
        ranked = ranked.masked_fill(ranked.cumsum(1) - ranked >= how.top_p, 0)
        probability = torch.zeros_like(probability).scatter(1, order, ranked)
    rows = zip(probability.cpu(), generators, strict=True)
    return torch.cat([torch.multinomial(row, 1, generator=g) for row, g in rows]).to(logits.device)
