"""Models of transformers through the engine: from a folder, with its weights, saved, generated from, and shipped."""

from __future__ import annotations

import json
import socket
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import exports, methods, models
from bigmodel_cli.core.special_tokens import SPECIALS
from bigmodel_cli.core.tokenizers.tokens import train_bpe
from bigmodel_cli.core.types import Start, TextSpec
from bigmodel_cli.engine.build.load import inference_weights, load_trained
from bigmodel_cli.engine.build.published_weights import load_pretrained
from bigmodel_cli.models.quantization.nf4 import NF4Linear

transformers = pytest.importorskip("transformers")
TEXT = "to be or not to be, that is the question\n"
QUICK = ("--batch-size", "8", "--set", "data.context=16", "--set", "placement.precision=fp32")


def saved(folder: Path, kind: str, config: Any) -> Any:
    """A tiny random model with its tokenizer, as save_pretrained leaves it."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(train_bpe([TEXT, "a fine film", "a dull film"], 300, SPECIALS))
    return model


def qwen(folder: Path) -> Any:
    config = transformers.Qwen2Config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=3, eos_token_id=3,
    )  # fmt: skip
    return saved(folder, "Qwen2ForCausalLM", config)


def test_a_base_in_4_bits_merges_into_the_model_in_use() -> None:
    config = transformers.Qwen2Config(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config).eval()
    plain, tokens = set(model.state_dict()), torch.randint(300, (2, 16))
    methods.get("lora")(Start(model, "lm_head", lambda path: None, None, None), rank=4, base="nf4-double")
    packed = [m for m in model.modules() if isinstance(m, NF4Linear)]
    assert len(packed) == 14 and all(m.low_rank is not None for m in packed)
    for module in packed:
        torch.nn.init.normal_(module.low_rank.b, std=0.1)
    merged = inference_weights({"model": model.state_dict(), "model_ema": None})
    assert set(merged) == plain
    other = transformers.Qwen2ForCausalLM(config).eval()
    other.load_state_dict(merged)
    with torch.inference_mode():
        assert (other(tokens).logits - model(tokens).logits).abs().max() < 1e-5


def test_a_causal_model_is_fine_tuned_and_needs_nothing_but_its_checkpoint(run_cli: Run, tmp_path: Path) -> None:
    reference = qwen(tmp_path / "qwen")
    (tmp_path / "a.txt").write_text(TEXT * 60)
    learned = run_cli(
        "finetune", "hf:qwen", "--pretrained", "--data", "./a.txt", "--lora", "4", "--lr", "1e-2", "--epochs", "3",
        "--out", "run", "--json", *QUICK,
    )  # fmt: skip
    events = [json.loads(line) for line in learned.stdout.splitlines()]
    assert learned.returncode == 0, learned.stderr
    assert events[-1]["val_loss"] < events[-1]["val_loss_before"] - 1
    saved_recipe = load_trained(tmp_path / "run").recipe
    assert saved_recipe.model.name == "hf:Qwen2ForCausalLM"
    with torch.inference_mode():  # the start that the run began with is theirs to the last digit
        start, tokens = load_pretrained(saved_recipe), torch.randint(300, (2, 16))
        assert (start.model(tokens) - reference(tokens).logits).abs().max() < 1e-5
    (tmp_path / "qwen").rename(tmp_path / "gone")
    trained = load_trained(tmp_path / "run")
    assert trained.task.spec.tokenizer == "bpe"
    with torch.inference_mode():
        both, alone = (
            ["".join(t or "" for t in text) for text in zip(*islice(said, 8), strict=True)]
            for prompts in (["to be", "or"], ["or"])
            for said in [trained.task.generate(trained.model, prompts, temperature=0)]
        )
        assert both[1] == alone[0]  # fill on the left changes nothing
        about = {"arch": "hf", "preprocess": trained.task.preprocessing()}
        exports.get("huggingface")(trained.model, (tokens,), tmp_path / "hf" / "model.safetensors", about)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
        assert type(theirs).__name__ == "Qwen2ForCausalLM"
        assert (theirs(tokens).logits - trained.model(tokens)).abs().max() < 1e-5


def test_a_classifier_is_trained_evaluated_and_answers(run_cli: Run, tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, num_labels=2,
    )  # fmt: skip
    saved(tmp_path / "bert", "BertForSequenceClassification", config)
    rows = [f"a {'fine' if i % 2 else 'dull'} film {i},{'good' if i % 2 else 'bad'}\n" for i in range(60)]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(rows))
    (tmp_path / "b.txt").write_text("a fine film\n\na dull film\n")
    done = run_cli(
        "finetune", "hf:bert", "--pretrained", "--data", "./a.csv", "--max-steps", "2", "--out", "run", *QUICK
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "bert").rename(tmp_path / "gone")
    seen = run_cli("eval", "run", "--split", "val", "--json")
    assert seen.returncode == 0 and "accuracy" in json.loads(seen.stdout)["headline"], seen.stderr
    said = run_cli("predict", "run", "b.txt", "--json")
    answers = [json.loads(line) for line in said.stdout.splitlines()]
    assert said.returncode == 0 and len(answers) >= 2, said.stderr
    trained = load_trained(tmp_path / "run")
    assert trained.recipe.model.name == "hf:BertForSequenceClassification"
    # What stands before the fill alone decides: the same text in a longer row has the same answer.
    with torch.inference_mode():
        row = torch.randint(4, 300, (1, 9))
        padded = trained.model(torch.nn.functional.pad(row, (0, 5)))
        assert torch.allclose(trained.model(row), padded, rtol=1e-5, atol=1e-5)


def test_the_cache_of_theirs_changes_no_token(tmp_path: Path) -> None:
    from bigmodel_cli.tasks.sampling import Sampling, next_tokens

    config = qwen(tmp_path / "qwen").config.to_json_string()
    spec = TextSpec("bpe", ((tmp_path / "qwen" / "tokenizer.json").read_text(),), 24)
    torch.manual_seed(1)
    model = models.get("hf:Qwen2ForCausalLM")(spec, config=config).eval()
    prompts, how = [[5, 6, 7], list(range(10, 19))], Sampling(seed=3)
    with torch.inference_mode():
        cached, plain = (list(islice(next_tokens(model, prompts, how, use), 20)) for use in (True, False))
    assert torch.equal(torch.stack(cached), torch.stack(plain))


def test_their_models_keep_documents_apart_or_say_that_they_do_not(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 300, "num_hidden_layers": 1, "hidden_size": 32, "eos_token_id": 3}
    gpt2 = transformers.GPT2Config(vocab_size=300, n_layer=2, n_head=2, n_embd=32, n_positions=32, eos_token_id=3)
    qwen(tmp_path / "Qwen2")
    saved(tmp_path / "GPT2LMHead", "GPT2LMHeadModel", gpt2)
    saved(tmp_path / "Mamba", "MambaForCausalLM", transformers.MambaConfig(**sizes, state_size=4))
    tokens, document = torch.randint(300, (1, 12)), torch.tensor([[0] * 5 + [1] + [2] * 6])
    for kind in ("Qwen2", "GPT2LMHead", "Mamba"):
        folder = tmp_path / kind
        spec = TextSpec("bpe", ((folder / "tokenizer.json").read_text(),), 16)
        name = "hf:GPT2LMHeadModel" if kind.startswith("GPT2") else f"hf:{kind}ForCausalLM"
        model = models.get(name)(spec, config=(folder / "config.json").read_text()).eval()
        if kind == "Mamba":
            with pytest.raises(InputError, match="cannot mask documents"):
                model(tokens, document=document)
            continue
        with torch.inference_mode():
            parts = [model(tokens[:, a:b]) for a, b in ((0, 5), (5, 6), (6, 12))]
            assert (torch.cat(parts, 1) - model(tokens, document=document)).abs().max() < 1e-5
            assert (torch.cat(parts, 1) - model(tokens)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"vocab_size": 10}, "the tokenizer has 294 tokens, the model 10"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized weights"),
    ],
)
def test_a_configuration_that_could_not_be_is_one_line(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    values = qwen(tmp_path / "qwen").config.to_dict() | change
    spec = TextSpec("bpe", ((tmp_path / "qwen" / "tokenizer.json").read_text(),), 16)
    with pytest.raises(InputError, match=words) as caught:
        models.get("hf:Qwen2ForCausalLM")(spec, config=json.dumps(values))(torch.zeros(1, 4, dtype=torch.int64))
    assert "\n" not in caught.value.line


def test_without_a_network_it_is_exit_3_within_seconds(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "none")}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port, reason in ((9, "refused"), (silent.getsockname()[1], "no answer in 3 s")):
            clock = time.monotonic()
            asked = hub | {"HF_ENDPOINT": f"http://127.0.0.1:{port}"}
            done = run_cli("train", "hf:someone/model", "--data", "./a.txt", variables=asked)
            assert done.returncode == 3 and "cannot ask" in done.stderr and reason in done.stderr, done.stderr
            assert len(done.stderr.splitlines()) == 2  # what is wrong, and what to do
            assert time.monotonic() - clock < 15  # 2.6 and 5 s on a quiet machine with a Python started anew
    offline = run_cli("finetune", "hf:someone/model", "--pretrained", "--offline", "--data", "./a.txt", variables=hub)
    assert offline.returncode == 3 and "this is offline" in offline.stderr
    missing = run_cli("train", "hf:./nowhere", "--data", "./a.txt")
    assert missing.returncode == 2 and "no such folder" in missing.stderr
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"architectures": ["ViTModel"], "model_type": "vit"}')
    other = run_cli("train", "hf:./vit", "--data", "./a.txt")
    assert other.returncode == 2 and "ViTModel" in other.stderr
