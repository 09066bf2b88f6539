"""Drawing tokens: the cache changes nothing, seeds repeat, and limits hold."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.tasks.sampling import Sampling, choose, next_tokens
from bigmodel_cli.tasks.vector_products import VectorLinear, vector_products


def build(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = models.get("gpt")(TextSpec("byte", (), 16), layers=2, heads=2, width=16, **options).eval()
    for parameter in model.parameters():  # untrained weights say nearly the same everywhere
        parameter.data.mul_(8)
    return model


def text(
    model: torch.nn.Module, prompts: list[list[int]], how: Sampling, n: int = 40, **options: bool
) -> list[list[int]]:
    with torch.inference_mode():
        return torch.stack(list(islice(next_tokens(model, prompts, how, **options), n)), 1).tolist()


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_the_cache_changes_no_token_and_neither_does_the_batch(position: str) -> None:
    model, prompts = build(position=position), [[1, 2, 3], list(range(9)), [7]]
    greedy = Sampling(temperature=0)
    together = text(model, prompts, greedy)
    assert together == text(model, prompts, greedy, use_cache=False)
    # Alone, the context fills at another time: equal until then.
    assert [t[:5] for t in together] == [text(model, [p], greedy, 5)[0] for p in prompts]


def test_linear_layers_take_vectors_only_while_a_text_is_written() -> None:
    model, prompt = build(bias=True), [[1, 2, 3]]
    before = {type(m) for m in model.modules()}
    with torch.inference_mode():
        tokens = next_tokens(model, prompt, Sampling(temperature=0))
        first = [next(tokens).item() for _ in range(4)]
        assert VectorLinear in {type(m) for m in model.modules()}
        tokens.close()  # type: ignore[attr-defined]
    assert {type(m) for m in model.modules()} == before
    assert first == text(model, prompt, Sampling(temperature=0), 4, use_cache=False)[0]


@pytest.mark.parametrize(("rows", "bias"), [(512, False), (515, True)])
def test_the_rows_of_a_large_layer_are_shared_out_among_the_threads(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.RMSNorm(384), torch.nn.Linear(384, rows, bias))
    x = torch.randn(1, 1, 384)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with torch.inference_mode(), vector_products(model):
            assert model[1].shares.shape == (4, 384, 128)
            fast, two = model(x), model(x.expand(2, -1, -1))  # two vectors go the usual way
    finally:
        torch.set_num_threads(before)
    assert "shares" not in vars(model[1])
    expected = model.double()(x.double())
    torch.testing.assert_close(fast.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(two[1:].double(), expected, atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_text_and_another_another() -> None:
    model, prompts = build(), [[1, 2, 3], [4]]
    a, b, c = (text(model, prompts, Sampling(seed=s)) for s in (3, 3, 4))
    assert a == b and a != c
    assert a[0] != a[1]


def test_limits() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).repeat(500, 1)
    generators = [torch.Generator().manual_seed(i) for i in range(500)]

    def drawn(**limits: object) -> set[int]:
        return set(choose(logits, Sampling(**limits), generators).tolist())

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {1, 2}
    assert drawn(top_p=0.5) == {1}
    assert drawn(top_p=0.7) == {1, 2}
    assert drawn(temperature=0) == {1}
    assert drawn(temperature=1e-3) == {1}


def test_drawn_tokens_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0]]).repeat(20_000, 1)
    generators = [torch.Generator().manual_seed(i) for i in range(20_000)]
    share = choose(logits, Sampling(temperature=2.0), generators).bincount(minlength=3) / 20_000
    torch.testing.assert_close(share, (logits[0] / 2).softmax(0), atol=0.015, rtol=0)
