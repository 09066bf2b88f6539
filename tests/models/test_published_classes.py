"""Encoders and sequence-to-sequence models under the names that their owners save them by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run

transformers = pytest.importorskip("transformers")
from published import framed, save  # noqa: E402

from bigmodel_cli.core.errors import InputError  # noqa: E402
from bigmodel_cli.core.registry import exports, models  # noqa: E402
from bigmodel_cli.core.tokenizers.framing import encode_source, encode_target  # noqa: E402
from bigmodel_cli.core.types import TextSpec  # noqa: E402
from bigmodel_cli.engine.build.huggingface_hub import huggingface_model  # noqa: E402
from bigmodel_cli.engine.build.load import load_trained  # noqa: E402
from bigmodel_cli.models.pretrained.published_text import read_published_text  # noqa: E402
from bigmodel_cli.models.transformers_models import load_pretrained  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
BOTH_SIDES: dict[str, Any] = {
    "vocab_size": 300, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
DISTIL = {"vocab_size": 300, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
MODERN = SIZES | {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
DEBERTA = SIZES | {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]}
T5 = {"vocab_size": 300, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8, "eos_token_id": 2}
ENCODERS: list[tuple[str, str, dict[str, Any], str]] = [
    ("BertModel", "Bert", SIZES, "classifier"),
    ("BertForMaskedLM", "Bert", SIZES, "bert.pooler.dense, classifier"),
    ("DistilBertForMaskedLM", "DistilBert", DISTIL, "classifier, pre_classifier"),
    ("RobertaModel", "Roberta", SIZES, "classifier.dense, classifier.out_proj"),
    ("DebertaV2Model", "DebertaV2", DEBERTA, "classifier, pooler.dense"),
    ("ModernBertForMaskedLM", "ModernBert", MODERN, "classifier"),
    ("GPT2LMHeadModel", "GPT2", {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4}, "score"),
]
TRANSLATORS: list[tuple[str, str, dict[str, Any]]] = [
    ("T5ForConditionalGeneration", "T5", T5 | {"decoder_start_token_id": 0}),
    ("MarianMTModel", "Marian", BOTH_SIDES | {"decoder_start_token_id": 0}),
    ("BartForConditionalGeneration", "Bart", BOTH_SIDES | {"decoder_start_token_id": 2}),
    ("MBartForConditionalGeneration", "MBart", BOTH_SIDES | {"decoder_start_token_id": 2}),
]


def loaded(folder: Path, task: str, **more: str) -> tuple[Any, Any, list[str], str]:
    section, _ = huggingface_model(f"hf:{folder}", True, task)
    options = {"checkpointing": False, "languages": None, "prefix": "", **section, **more}
    spec, model, notes, *_ = load_pretrained(section["name"].removeprefix("hf:"), folder, 16, options)
    return spec, model.eval(), notes, section["name"]


@pytest.mark.parametrize(("kind", "family", "sizes", "new"), ENCODERS, ids=[kind for kind, *_ in ENCODERS])
def test_an_encoder_gets_a_head_and_keeps_its_weights(
    kind: str, family: str, sizes: dict[str, Any], new: str, tmp_path: Path
) -> None:
    theirs = save(tmp_path, kind, getattr(transformers, f"{family}Config")(**sizes), framed())
    spec, ours, notes, name = loaded(tmp_path, "text_classification")
    assert name == f"hf:{family}ForSequenceClassification" and spec.classes == ()
    assert notes[0] == f"new, since the published weights have none: {new}"
    tokens = torch.tensor([[1, 40, 41, 42, 2], [1, 50, 2, 0, 0]])
    mask = (tokens != 0).long()
    with torch.inference_mode():
        base = ours.inner.base_model(input_ids=tokens, attention_mask=mask)[0]
        wanted = theirs.base_model(input_ids=tokens, attention_mask=mask)[0]
        assert ((base - wanted).abs() * mask[..., None]).max() < 1e-5
        assert (ours(tokens)[1] - ours(tokens[1:, :3])[0]).abs().max() < 1e-5  # padding changes nothing


@pytest.mark.parametrize(("kind", "family", "sizes", "_"), ENCODERS[:-1], ids=[kind for kind, *_ in ENCODERS[:-1]])
def test_a_frozen_encoder_is_read_by_the_mean_of_its_states(
    kind: str, family: str, sizes: dict[str, Any], _: str, tmp_path: Path
) -> None:
    theirs = save(tmp_path, kind, getattr(transformers, f"{family}Config")(**sizes), framed())
    spec, ours, notes, name = loaded(tmp_path, "text_classification", pooling="mean")
    about = models.get(name).meta
    assert about["frozen_options"]({"config": (tmp_path / "config.json").read_text()}) == {"pooling": "mean"}
    assert notes[0] == f"new, since the published weights have none: {about['head'].removeprefix('inner.')}"
    tokens, short = torch.tensor([[1, 40, 41, 42, 2], [1, 50, 2, 0, 0]]), torch.tensor([[1, 50, 2]])
    head = ours.get_submodule(about["head"])
    with torch.inference_mode():
        means = torch.cat([theirs.base_model(input_ids=row)[0].mean(1) for row in (tokens[:1], short)])
        assert (ours(tokens) - head(means)).abs().max() < 1e-5
    config = (tmp_path / "config.json").read_text()
    again = models.get(name)(spec.with_(classes=("a", "b")), config=config, pooling="mean")
    again.load_state_dict(ours.state_dict())
    with pytest.raises(InputError, match="does not read the mean"):
        exports.get("huggingface")(
            again, (tokens,), tmp_path / "x.safetensors", {"preprocess": spec.to_dict(), "arch": ""}
        )


def test_an_exclamation_mark_is_no_padding(tmp_path: Path) -> None:
    """Llama 3 has no padding token, and its id 0 is an exclamation mark."""
    import tokenizers as tk

    from bigmodel_cli.core.registry import losses, tasks

    raw = tk.Tokenizer(tk.models.BPE())
    raw.pre_tokenizer, raw.decoder = tk.pre_tokenizers.ByteLevel(add_prefix_space=False), tk.decoders.ByteLevel()
    alphabet = tk.pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(["a fine film"], tk.trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    raw.add_special_tokens(["<|end_of_text|>"])
    end = {"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>"}
    known = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **end)
    config = transformers.GPT2Config(vocab_size=len(known), n_embd=32, n_layer=2, n_head=4)
    save(tmp_path, "GPT2LMHeadModel", config, known)
    spec, ours, *_ = loaded(tmp_path, "text_classification")
    task = tasks.get("text_classification")(spec, losses.get("cross_entropy")(), None)
    tokens = task.encode_texts(["a fine film", "a fine film!"])["tokens"]
    assert tokens[1, -1] == 0
    with torch.inference_mode():
        plain, loud = ours(tokens)
        assert (plain - ours(tokens[:1, :-1])[0]).abs().max() < 1e-5
        assert (plain - loud).abs().max() > 1e-2


@pytest.mark.parametrize(("kind", "family", "sizes"), TRANSLATORS, ids=[family for _, family, _ in TRANSLATORS])
def test_a_translator_is_theirs_in_logits_and_in_greedy_text(
    kind: str, family: str, sizes: dict[str, Any], tmp_path: Path
) -> None:
    from bigmodel_cli.core.registry import losses, tasks
    from bigmodel_cli.tasks.beam import beam_search

    save(tmp_path, kind, getattr(transformers, f"{family}Config")(**sizes), framed())
    theirs = getattr(transformers, kind).from_pretrained(tmp_path).eval()
    spec, ours, _, name = loaded(tmp_path, "translation")
    assert name == f"hf:{kind}"
    task = tasks.get("translation")(spec, losses.get("cross_entropy")(), None)
    known = transformers.AutoTokenizer.from_pretrained(tmp_path)
    source = task.encode_texts(["a fine film", "a dull"])["source"]
    assert source.tolist() == known(["a fine film", "a dull"], padding=True, return_tensors="pt").input_ids.tolist()
    target = torch.tensor([[sizes["decoder_start_token_id"], 1, 44, 45, 46]] * 2)
    mask = (source != 0).long()
    with torch.inference_mode():
        wanted = theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
        assert (ours(source, target) - wanted).abs().max() < 1e-5
        cache = ours.start_decoding(source)
        steps = torch.stack([ours.step(target[:, i], cache) for i in range(5)], 1)
        assert (steps - wanted).abs().max() < 1e-5
        said, _ = beam_search(ours, source[:1], 1, spec)
        begins = {"forced_bos_token_id": 1, "forced_eos_token_id": None, "bad_words_ids": [[0]]}
        greedy = theirs.generate(source[:1], max_new_tokens=said.shape[1], num_beams=1, do_sample=False, **begins)
    row, reference = said[0].tolist(), greedy[0, 1:].tolist()
    stop = row.index(2) + 1 if 2 in row else len(row)
    assert row[:stop] == reference[:stop]


def test_the_languages_of_mbart_frame_its_texts(tmp_path: Path) -> None:
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581a", -1.0), ("\u2581film", -2.0)]
    transformers.MBart50Tokenizer(vocab=pieces, src_lang="en_XX", tgt_lang="de_DE").save_pretrained(tmp_path)
    transformers.MBartConfig(**BOTH_SIDES, decoder_start_token_id=2).save_pretrained(tmp_path)
    found = read_published_text(tmp_path, True, ("fr_XX", "de_DE"))
    spec = TextSpec("bpe", (found.tokenizer,), 16, conventions=found.conventions)
    known = transformers.AutoTokenizer.from_pretrained(tmp_path, src_lang="fr_XX", tgt_lang="de_DE")
    assert encode_source("a film", spec) == known("a film").input_ids
    assert encode_target("a film", spec) == [2, *known(text_target="a film").input_ids]
    assert known.convert_ids_to_tokens(list(found.conventions.target_before)) == ["de_DE"]


def test_what_an_architecture_cannot_do_is_one_line(tmp_path: Path) -> None:
    save(tmp_path, "BertModel", transformers.BertConfig(**SIZES), framed())
    with pytest.raises(InputError, match="is an encoder, which sees the tokens that it should predict"):
        huggingface_model(f"hf:{tmp_path}", True, "language_modeling")
    with pytest.raises(InputError, match=r"is BertModel.*for translation") as caught:
        huggingface_model(f"hf:{tmp_path}", True, "translation")
    assert "\n" not in caught.value.line


def test_roberta_takes_as_many_tokens_as_it_has_positions_for(tmp_path: Path) -> None:
    """They are numbered from the padding token's id plus one."""
    save(tmp_path, "RobertaModel", transformers.RobertaConfig(**SIZES), framed())
    section, _ = huggingface_model(f"hf:{tmp_path}", True, "text_classification")
    options = {"checkpointing": False, "languages": None, "prefix": "", **section}
    spec, model, *_ = load_pretrained("RobertaForSequenceClassification", tmp_path, None, options)
    assert spec.context == 63
    with torch.inference_mode():
        model(torch.full((1, 63), 9))
    with pytest.raises(InputError, match="the model's context window is 63"):
        load_pretrained("RobertaForSequenceClassification", tmp_path, 64, options)


def test_t5_is_fine_tuned_evaluated_answers_and_ships(run_cli: Run, tmp_path: Path) -> None:
    config = transformers.T5Config(**T5, decoder_start_token_id=0)
    save(tmp_path / "t5", "T5ForConditionalGeneration", config, framed(), num_beams=2)
    rows = "".join(f"a fine film {i}\tein film {i}\na dull film {i}\tfad {i}\n" for i in range(40))
    (tmp_path / "a.tsv").write_text("source\ttarget\n" + rows)
    (tmp_path / "b.txt").write_text("a fine film 3\n\na dull film 4\n")
    quick = ("--data", "./a.tsv", "--batch-size", "8", "--set", "placement.precision=fp32", "--set", "data.context=24")
    learned = run_cli(
        "finetune", "hf:t5", "--pretrained", *quick, "--max-steps", "20", "--lr", "1e-2", "--out", "run", "--json"
    )
    assert learned.returncode == 0, learned.stderr
    last = json.loads(learned.stdout.splitlines()[-1])
    assert last["val_loss"] < last["val_loss_before"] - 0.5
    (tmp_path / "t5").rename(tmp_path / "gone")
    seen = run_cli("eval", "run", "--split", "val", "--json")
    assert seen.returncode == 0 and "bleu" in json.loads(seen.stdout)["headline"], seen.stderr
    said = run_cli("predict", "run", "b.txt", "--json")
    assert said.returncode == 0 and len(said.stdout.splitlines()) >= 2, said.stderr
    ship = ("--samples", "4", "--seconds", "0")
    shipped = run_cli("export", "run", "--format", "huggingface", "--out", "huggingface", *ship)
    assert shipped.returncode == 0, shipped.stderr
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "huggingface").eval()
    assert theirs.generation_config.eos_token_id == 2 and theirs.generation_config.decoder_start_token_id == 0
    ours, pair = load_trained(tmp_path / "run").model, (torch.tensor([[1, 40, 2]]), torch.tensor([[0, 1, 44]]))
    assert theirs.generate(pair[0], max_new_tokens=3).shape[0] == 1  # with the owners' beams, a whole number of them
    with torch.inference_mode():
        logits = theirs(input_ids=pair[0], decoder_input_ids=pair[1]).logits
        assert (ours(*pair) - logits).abs().max() < 1e-5
