"""The folder for transformers: its Auto classes load it, and it is what ours was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Run

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import exports, models
from bigmodel_cli.core.special_tokens import SPECIALS
from bigmodel_cli.core.tokenizers.char import char_vocabulary
from bigmodel_cli.core.tokenizers.huggingface_json import tokenizer_json
from bigmodel_cli.core.tokenizers.tokens import tokenizer, train_bpe
from bigmodel_cli.core.tokenizers.word import word_vocabulary
from bigmodel_cli.core.tokenizers.wordpunct import split_marks
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.engine.build.load import load_trained

transformers = pytest.importorskip("transformers")
MARKS = "Trek: don't “stop” a_b x\u00a0y\x1cz हिन्दी 東京 ❤\ufe0f 👩\u200d🚀 3.5$ ([ok])"
TEXT = "to be or not to be,\nthat is the Question: été, naïve\t<end> 12 \U0001f600\n"


@pytest.mark.parametrize(
    "spec",
    [
        TextSpec("byte", (), 8),
        TextSpec("char", char_vocabulary([TEXT], SPECIALS), 8),
        TextSpec("word", word_vocabulary([TEXT], 1), 8),
        TextSpec("wordpunct", word_vocabulary([TEXT, MARKS], 1, split=split_marks), 8),
        TextSpec("bpe", (train_bpe([TEXT], 300),), 8),
    ],
    ids=lambda spec: spec.tokenizer,
)
def test_the_tokenizer_gives_the_same_ids_and_text(spec: TextSpec) -> None:
    from tokenizers import Tokenizer

    ours, theirs = tokenizer(spec), Tokenizer.from_str(tokenizer_json(spec))
    for text in ("To be, or nöt", "a\n\nb  c", TEXT.replace("<end>", ""), "", MARKS):
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ids == list(ours.encode(text))
    ids = list(ours.encode("to be or not"))
    assert theirs.decode(ids) == ours.decode(ids) == "to be or not"


def test_transformers_loads_what_was_trained_and_says_the_same(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be, that is the question\n" * 30)
    train = ("train", "gpt", "--data", "./a.txt", "--set", "data.context=32", "--lr", "1e-2", "--max-steps", "5")
    assert run_cli(*train, "--set", "model.layers=2", "--set", "model.width=32", "--out", "run").returncode == 0
    done = run_cli("export", "run", "--format", "huggingface", "--out", "hf", "--samples", "8", "--seconds", "0")
    assert done.returncode == 0 and "Loading" not in done.stderr, done.stderr
    proof = json.loads((tmp_path / "hf" / "proof.json").read_text())
    assert proof["passed"] and proof["tolerance"] == 1e-5
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(proof["files"])
    limits = (tmp_path / "hf" / "MODEL_CARD.md").read_text().partition("## Limits")[2]
    assert "what it writes may be wrong" in limits and "It knows only its classes" not in limits
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    cut = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    ids = cut("to be or not", return_tensors="pt").input_ids
    ours = load_trained(tmp_path / "run").model
    with torch.inference_mode():
        assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-5
    greedy = theirs.generate(ids, max_new_tokens=3, do_sample=False)
    said = run_cli("generate", "run", "--prompt", "to be or not", "--max-tokens", "3", "--temperature", "0")
    assert said.stdout.rstrip("\n") == cut.decode(greedy[0]).rstrip("\n")


def test_a_model_in_llamas_layout_becomes_a_llama(tmp_path: Path) -> None:
    spec, options = TextSpec("byte", (), 16), {"position": "rope", "norm": "rms", "mlp": "swiglu", "kv_heads": 2}
    torch.manual_seed(0)
    model = models.get("gpt")(spec, layers=2, width=32, tied=False, **options).eval()
    tokens = torch.randint(257, (2, 16))
    about = {"tokenizer": "byte", "vocabulary": [], "context": 16}
    entry = exports.get("huggingface")
    entry(model, (tokens,), tmp_path / "model.safetensors", {"arch": "gpt", "preprocess": about})
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)).__name__ == "LlamaForCausalLM"
    said = torch.from_numpy(entry.meta["run"](tmp_path / "model.safetensors", None)(tokens.numpy()))
    with torch.inference_mode():
        assert (model(tokens) - said).abs().max() < 1e-5
    odd = models.get("gpt")(spec, layers=1, width=32, position="rope")
    with pytest.raises(InputError, match="neither GPT-2's layout"):
        entry(odd, (tokens,), tmp_path / "other.safetensors", {"arch": "gpt", "preprocess": about})


def test_what_transformers_has_no_architecture_for_is_refused(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "text,label\n" + "".join(f"a fine film {i},good\na dull film {i},bad\n" for i in range(10))
    )
    small = ("--set", "model.width=16", "--max-steps", "2", "--out", "run")
    assert run_cli("train", "text-encoder", "--data", "./a.csv", *small).returncode == 0
    refused = run_cli("export", "run", "--format", "huggingface", "--out", "hf")
    assert refused.returncode == 2 and "transformers has no architecture like text-encoder" in refused.stderr
    assert not (tmp_path / "hf").exists()
