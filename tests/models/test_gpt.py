"""Decoder-only transformers: causality, the cache, masks, chunks, and what is registered."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.models.layers import chunked_loss
from bigmodel_cli.models.layers.kv_cache import KVCache
from bigmodel_cli.models.layers.meta_init import init_on_meta

SPEC = TextSpec("byte", (), 16)
KINDS = [
    {},
    {"position": "rope", "norm": "rms", "mlp": "swiglu", "kv_heads": 1},
    {"position": "rope", "kv_heads": 2, "bias": True, "tied": False},
]


def build(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.get("gpt")(SPEC, layers=2, heads=4, width=32, **options).eval()


@pytest.mark.parametrize("name", [n for n in models.names() if n.startswith("gpt")])
def test_every_size_gives_logits_a_token(name: str) -> None:
    with init_on_meta():
        model = models.get(name)(SPEC).eval()
        assert model(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 257)


@pytest.mark.parametrize("options", KINDS)
def test_a_later_token_changes_nothing_before_it(options: dict[str, object]) -> None:
    model, tokens = build(**options), torch.randint(257, (2, 12))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 257
    a, b = model(tokens), model(changed)
    torch.testing.assert_close(a[:, :7], b[:, :7])
    assert not torch.allclose(a[:, 7:], b[:, 7:])


@pytest.mark.parametrize("options", KINDS)
def test_the_cache_answers_like_the_whole(options: dict[str, object]) -> None:
    model, tokens = build(**options), torch.randint(257, (2, 12))
    cache = KVCache(16)
    parts = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 9), (9, 12))]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", KINDS)
def test_padded_prompts_answer_like_each_alone(options: dict[str, object]) -> None:
    model, long, short = build(**options), torch.randint(257, (9,)), torch.randint(257, (4,))
    batch = torch.stack([long, torch.cat([torch.zeros(5, dtype=torch.int64), short])])
    cache = KVCache(16, pad=torch.tensor([0, 5]))
    both = torch.cat([model(batch[:, :7], cache=cache), model(batch[:, 7:], cache=cache)], 1)
    torch.testing.assert_close(both[0], model(long[None])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1, 5:], model(short[None])[0], rtol=1e-4, atol=1e-5)


def test_chunks_change_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, targets = build(), torch.randint(257, (3, 8)), torch.randint(257, (3, 8))
    targets[0, :3] = -100

    def loss_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        loss = model(tokens, targets, lambda z, y: F.cross_entropy(z, y, reduction="none"))
        loss.sum().backward()
        return loss.detach(), model.head.weight.grad.clone()

    whole = loss_and_gradient()
    assert not whole[0][0, :3].any() and whole[0][1].all()
    monkeypatch.setattr(chunked_loss, "MAX_CHUNK_LOGITS", 257 * 5)
    torch.testing.assert_close(loss_and_gradient(), whole)
    by_torch = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(whole[0].sum(), by_torch.detach())


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="width 30, heads 4"):
        models.get("gpt")(SPEC, heads=4, width=30)
