"""Attention in another way than torch's kernel is the same attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bigmodel_cli.models.layers import sdpa
from bigmodel_cli.models.layers.dropout import Dropout, share_draws
from bigmodel_cli.models.layers.sdpa import attend, attend_and_drop

SIZES = (3, 2, 7, 4)  # batch, heads, tokens, head dimension


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(SIZES).to(dtype).requires_grad_() for _ in range(3)]


def masks() -> dict[str, Tensor | None]:
    allowed = torch.ones(3, 1, 7, 7, dtype=torch.bool)
    allowed[1, :, :, 4:] = False
    return {"none": None, "bool": allowed, "added": torch.zeros(3, 1, 7, 7).masked_fill(~allowed, -1e9)}


@pytest.mark.parametrize("kind", masks())
def test_dropped_weights_are_those_of_the_softmax_scaled_or_zero(kind: str) -> None:
    q, k, _ = inputs()
    mask, identity = masks()[kind], torch.eye(7).expand(3, 2, 7, 7)
    expected = F.scaled_dot_product_attention(q, k, identity, mask)
    torch.manual_seed(1)
    found = attend_and_drop(q, k, identity, mask, Dropout(0.5))
    kept = found != 0
    assert 0.3 < kept.float().mean() / (expected > 0).float().mean() < 0.7
    torch.testing.assert_close(found[kept], 2 * expected[kept], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(attend_and_drop(q, k, identity, mask, Dropout(0.5).eval()), expected)


def test_a_row_that_is_masked_as_a_whole_is_a_number() -> None:
    q, k, v = inputs()
    assert attend_and_drop(q, k, v, torch.zeros(7, 7, dtype=torch.bool), Dropout(0.1)).isfinite().all()


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("kind", masks())
def test_bf16_is_trained_in_fp32_without_amx(kind: str, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "_has_amx", lambda: amx)
    used: list[torch.dtype] = []
    kernel = F.scaled_dot_product_attention

    def spy(q: Tensor, *rest: Any, **options: Any) -> Tensor:
        used.append(q.dtype)
        return kernel(q, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    qkv, mask = inputs(torch.bfloat16), masks()[kind]
    mask = mask.bfloat16() if kind == "added" and mask is not None else mask
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*qkv, mask)
    found.float().square().sum().backward()
    exact = [x.detach().float().requires_grad_() for x in qkv]
    kernel(*exact, masks()[kind]).square().sum().backward()
    assert used == [torch.bfloat16 if amx else torch.float32]
    assert found.dtype == torch.bfloat16
    for x, y in zip(qkv, exact, strict=True):
        assert x.grad is not None and y.grad is not None
        assert (x.grad.float() - y.grad).norm() < 0.03 * y.grad.norm()
    with torch.no_grad():
        attend(*(x.detach() for x in qkv), mask)
    assert used[-1] == torch.bfloat16, "without gradients the kernel is as fast in bf16"


def test_a_bert_drops_its_attention_by_our_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    from bigmodel_cli.models.pretrained.wrapped import Classifier

    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        hidden_dropout_prob=0.0, classifier_dropout=0.0, attention_probs_dropout_prob=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Classifier(transformers.BertForSequenceClassification(config), 16, 0).eval()
    tokens = torch.randint(1, 50, (2, 9))
    tokens[1, 6:] = 0
    plain, mean = model(tokens), torch.zeros(2, 2)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    model.train()
    torch.manual_seed(0)
    first = model(tokens)
    assert not first.equal(model(tokens))
    torch.manual_seed(0)
    assert model(tokens).equal(first), "the seed repeats it"
    with torch.no_grad():
        mean = torch.stack([model(tokens) for _ in range(400)]).mean(0)
    assert (mean - plain).abs().max() < 0.02
    assert not any(type(m) is torch.nn.Dropout for m in model.modules())


def test_only_plain_dropout_of_another_library_becomes_ours() -> None:
    class Other(torch.nn.Dropout):
        pass

    model = torch.nn.Sequential(torch.nn.Dropout(0.3), Other(0.3), torch.nn.Dropout2d(0.3))
    share_draws(model)
    assert [type(m) for m in model] == [Dropout, Other, torch.nn.Dropout2d]
    assert model[0].p == 0.3
