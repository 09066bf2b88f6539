"""Weights as transformers saves them, through `finetune --from`: our logits are theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.engine.build.load import load_trained
from bigmodel_cli.models.pretrained.llama import from_llama, to_llama

transformers = pytest.importorskip("transformers")
LLAMA = {
    "layers": 2, "heads": 4, "kv_heads": 2, "width": 32, "inside": 48, "position": "rope", "norm": "rms",
    "mlp": "swiglu", "rope_base": 5_000.0, "norm_eps": 1e-6,
}  # fmt: skip
GPT2 = {"layers": 2, "heads": 4, "width": 32, "bias": True, "mlp": "gelu-tanh"}


def shaken(model: Any) -> Any:
    """With every parameter moved: a norm that was lost would not show at its first value."""
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def llama(tied: bool = True) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-6, tie_word_embeddings=tied,
        bos_token_id=256, eos_token_id=256, rope_parameters={"rope_type": "default", "rope_theta": 5_000.0},
    )  # fmt: skip
    torch.manual_seed(0)
    return shaken(transformers.LlamaForCausalLM(config))


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=257, n_positions=32, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    torch.manual_seed(0)
    return shaken(transformers.GPT2LMHeadModel(config))


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_there_and_back(tied: bool) -> None:
    reference, tokens = llama(tied), torch.randint(257, (2, 32))
    ours = models.get("gpt")(TextSpec("byte", (), 32), **LLAMA, tied=tied).eval()
    ours.load_state_dict(from_llama(reference.state_dict(), 4))
    back = llama(tied)
    for parameter in back.parameters():
        parameter.data.zero_()
    back.load_state_dict(to_llama(ours.state_dict(), heads=4, groups=2))
    with torch.inference_mode():
        expected = reference(tokens).logits
        assert (ours(tokens) - expected).abs().max() < 1e-5
        assert (back(tokens).logits - expected).abs().max() < 1e-5


def test_half_a_llama_is_refused() -> None:
    state = llama().state_dict()
    with pytest.raises(InputError, match="1 tensors missing, 0 unexpected"):
        from_llama({k: v for k, v in state.items() if k != "model.layers.1.mlp.up_proj.weight"}, 4)


@pytest.mark.parametrize(("theirs", "options"), [(gpt2, GPT2), (llama, LLAMA)])
def test_finetune_starts_from_the_files_that_the_hub_has(
    theirs: Any, options: dict[str, Any], run_cli: Run, tmp_path: Path
) -> None:
    reference, tokens = theirs(), torch.randint(257, (2, 16))
    reference.save_pretrained(tmp_path / "hub")
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 40)
    given = [part for k, v in options.items() for part in ("--set", f"model.{k}={str(v).lower()}")]
    command = ("finetune", "gpt", "--from", "hub/model.safetensors", "--data", "./a.txt", *given)
    command += ("--set", "data.context=16", "--max-steps", "1", "--lr", "1e-9", "--out", "run")
    done = run_cli(*command)
    assert done.returncode == 0, done.stderr
    assert "started from model.safetensors: all" in done.stderr
    with torch.inference_mode():
        apart = (load_trained(tmp_path / "run").model(tokens) - reference(tokens).logits).abs().max()
    assert apart < 1e-5
    wrong = run_cli(*command[:-1], "other", "--set", "data.tokenizer=char")
    assert wrong.returncode == 2 and "257 tokens, the tokenizer has" in wrong.stderr
