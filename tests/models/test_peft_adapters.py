"""Adapters in PEFT's format, read and written; PEFT itself is the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file, save_file

peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
from published import causal  # noqa: E402

from bigmodel_cli.core.errors import InputError  # noqa: E402
from bigmodel_cli.engine.build.huggingface_hub import base_and_adapter  # noqa: E402
from bigmodel_cli.engine.build.load import load_trained  # noqa: E402
from bigmodel_cli.models.adapters.peft_format import merge_adapter  # noqa: E402

TOKENS = torch.arange(3, 27).view(2, 12)
CASES: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 12}),
    ("Qwen2", {"target_modules": "all-linear", "r": 4, "use_rslora": True, "rank_pattern": {"q_proj": 2}}),
    ("GPT2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "modules_to_save": ["ln_f"]}),
]


@pytest.mark.parametrize(("layout", "options"), CASES, ids=[layout for layout, _ in CASES])
def test_an_adapter_of_peft_is_merged(layout: str, options: dict[str, Any], tmp_path: Path) -> None:
    base = causal(tmp_path / "base", layout)
    theirs = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * (0.1 if "lora" in name else 0.01))
    theirs.save_pretrained(tmp_path / "adapter")
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**about, "base_model_name_or_path": "../base"})
    )
    folder, adapter = base_and_adapter(str(tmp_path / "adapter"), weights=True)
    assert folder.resolve() == tmp_path / "base" and adapter is not None
    ours = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        before = ours(TOKENS).logits
    merge_adapter(ours, adapter)
    with torch.inference_mode():
        wanted = theirs(TOKENS).logits
        assert (ours(TOKENS).logits - wanted).abs().max() < 1e-5 < (before - wanted).abs().max()


def test_an_adapter_is_trained_written_and_read_by_peft(run_cli: Run, tmp_path: Path) -> None:
    causal(tmp_path / "base", "Llama")
    (tmp_path / "a.txt").write_text("".join(f"{i} who {7 * i} answer {i % 5}\n" for i in range(100)))
    quick = ("--max-steps", "3", "--lr", "1e-2", "--batch-size", "8", "--set", "placement.precision=fp32")
    start = ("--pretrained", "--data", "./a.txt", "--set", "data.context=16", *quick)
    assert run_cli("finetune", "hf:base", *start, "--lora", "4", "--out", "run").returncode == 0
    done = run_cli("checkpoint", "adapter", "run", "--out", "adapter", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["largest_difference"] < 1e-5
    ours = load_trained(tmp_path / "run").model
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    with torch.inference_mode():
        plain = base(TOKENS).logits
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert (theirs(TOKENS).logits - ours(TOKENS)).abs().max() < 1e-5 < (plain - ours(TOKENS)).abs().max()
    again = run_cli("finetune", "hf:adapter", *start, "--max-steps", "1", "--out", "more")
    assert again.returncode == 0 and "adapter merged into 14 layers" in again.stderr, again.stderr
    refused = run_cli("checkpoint", "adapter", "more", "--out", "none")
    assert refused.returncode == 2 and "no adapters that PEFT could use" in refused.stderr


def test_added_tokens_of_an_adapter_are_read_with_their_embeddings(run_cli: Run, tmp_path: Path) -> None:
    base = causal(tmp_path / "base", "Llama")
    known = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    known.add_special_tokens({"additional_special_tokens": ["<|tool|>", "<|end|>"]})
    base.resize_token_embeddings(base.config.vocab_size + 8)
    theirs = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2)).eval()
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    known.save_pretrained(tmp_path / "adapter")
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    about["base_model_name_or_path"] = "../base"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(about))
    (tmp_path / "a.txt").write_text("who are you<|tool|>I am a model<|end|>\n" * 40)
    done = run_cli(
        "finetune", "hf:adapter", "--pretrained", "--data", "./a.txt", "--set", "data.context=16", "--max-steps", "1",
        "--set", "placement.precision=fp32", "--lr", "1e-12", "--out", "run",
    )  # fmt: skip
    assert done.returncode == 0 and f"tokenizer of the adapter, {len(known)} tokens" in done.stderr, done.stderr
    ours = load_trained(tmp_path / "run")
    tokens = torch.tensor([known.encode("who are you<|tool|>I am<|end|>")])
    assert set(known.convert_tokens_to_ids(["<|tool|>", "<|end|>"])) <= set(tokens[0].tolist())
    with torch.inference_mode():
        assert (ours.model(tokens) - theirs(tokens).logits).abs().max() < 1e-5
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if "lm_head" not in k}, tmp_path / "adapter/adapter_model.safetensors")
    lacking = run_cli("generate", "hf:adapter", "--pretrained", "--prompt", "who")
    assert lacking.returncode == 2 and "and the adapter no lm_head.weight" in lacking.stderr, lacking.stderr


def test_an_adapter_of_another_kind_or_model_is_one_line(tmp_path: Path) -> None:
    causal(tmp_path / "base", "Llama")
    adapter = tmp_path / "adapter"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft.get_peft_model(model, peft.IA3Config(task_type="CAUSAL_LM")).save_pretrained(adapter)
    with pytest.raises(InputError, match="an adapter of kind IA3"):
        base_and_adapter(str(adapter), weights=True)
    causal(tmp_path / "other", "Qwen3")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2)
    peft.get_peft_model(other, config).save_pretrained(adapter)
    with pytest.raises(InputError, match="the base model has"):
        merge_adapter(causal(tmp_path / "gpt2", "GPT2"), adapter)
