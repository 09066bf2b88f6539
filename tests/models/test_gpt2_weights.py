"""GPT-2's weights: our logits are those of transformers, in both directions."""

from __future__ import annotations

import pytest
import torch

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.models.pretrained.gpt2 import from_gpt2, to_gpt2

transformers = pytest.importorskip("transformers")
SPEC = TextSpec("byte", (), 32)


def theirs() -> torch.nn.Module:
    config = transformers.GPT2Config(
        vocab_size=257, n_positions=32, n_embd=48, n_layer=3, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():  # biases start at zero: a lost one would not show
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def ours(bias: bool = True, **options: object) -> torch.nn.Module:
    return models.get("gpt")(SPEC, layers=3, heads=4, width=48, bias=bias, **{"mlp": "gelu-tanh", **options}).eval()


def test_logits_equal_in_both_directions() -> None:
    model, reference = ours(), theirs()
    model.load_state_dict(from_gpt2(reference.state_dict(), 4))
    tokens = torch.randint(257, (2, 32))
    with torch.inference_mode():
        expected = reference(tokens).logits
        assert (model(tokens) - expected).abs().max() < 1e-5
    back = theirs()
    with torch.no_grad():
        for parameter in back.parameters():
            parameter.zero_()
    back.load_state_dict(to_gpt2(model.state_dict(), 4), strict=False)
    with torch.inference_mode():
        assert (back(tokens).logits - expected).abs().max() < 1e-5


def test_a_model_without_biases_is_written_with_zeros() -> None:
    torch.manual_seed(1)
    model, reference = ours(bias=False), theirs()
    reference.load_state_dict(to_gpt2(model.state_dict(), 4), strict=False)
    tokens = torch.randint(257, (1, 9))
    with torch.inference_mode():
        assert (reference(tokens).logits - model(tokens)).abs().max() < 1e-5


@pytest.mark.parametrize("options", [{"position": "rope"}, {"mlp": "swiglu"}, {"kv_heads": 2}])
def test_another_layout_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        to_gpt2(ours(**options).state_dict(), 4)


def test_other_weights_are_refused() -> None:
    with pytest.raises(InputError, match="missing"):
        from_gpt2({"h.0.ln_1.weight": torch.zeros(3)}, 4)
