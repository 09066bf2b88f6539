"""Tokenizers that lie beside published weights as SentencePiece models; transformers' own tokenizers are the oracle."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
spm = pytest.importorskip("sentencepiece")
from published import TEXT  # noqa: E402

from bigmodel_cli.core.errors import InputError, MachineError  # noqa: E402
from bigmodel_cli.core.registry import exports, losses, tasks  # noqa: E402
from bigmodel_cli.core.tokenizers.framing import encode_source, encode_target  # noqa: E402
from bigmodel_cli.core.tokenizers.tokens import tokenizer  # noqa: E402
from bigmodel_cli.core.types import TextSpec  # noqa: E402
from bigmodel_cli.data.text.parallel import ParallelTexts  # noqa: E402
from bigmodel_cli.engine.build.huggingface_hub import huggingface_model  # noqa: E402
from bigmodel_cli.models.pretrained.published_text import read_published_text  # noqa: E402
from bigmodel_cli.models.transformers_models import load_pretrained  # noqa: E402

GERMAN = ["Wer bist du? Ich bin ein Modell, und wir antworten.", "der schnelle braune Fuchs", "ein guter Film"]
ODD = ["", " two   blanks ", "a\tb\nc", "\ufb01ne \u00fcber", "12,345.67", "\u65e5\u672c", "e\u0301"]
LINES = {"source": [line for text in TEXT for line in text.splitlines()], "target": GERMAN}


def train(file: Path, lines: list[str], **options: Any) -> None:
    """A SentencePiece model of `lines`."""
    known = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2, "model_prefix": str(file.with_suffix(""))}
    spm.SentencePieceTrainer.train(sentence_iterator=iter(lines), **{**known, **options})
    file.with_suffix(".model").rename(file)
    file.with_suffix(".vocab").unlink()


def pieces(file: Path) -> list[str]:
    model = spm.SentencePieceProcessor(model_file=str(file))
    return [model.id_to_piece(i) for i in range(model.get_piece_size())]


@pytest.fixture
def marian(tmp_path: Path) -> Path:
    """A random Marian as its owners save it, without a tokenizer.json."""
    for side, lines in LINES.items():
        train(tmp_path / f"{side}.spm", lines)
    both = dict.fromkeys(
        p for side in LINES for p in pieces(tmp_path / f"{side}.spm") if p not in ("<s>", "</s>", "<unk>")
    )
    ids = {piece: i for i, piece in enumerate(["</s>", "<unk>", *both, ">>de<<", "<pad>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "tokenizer_config.json").write_text('{"source_lang": "en", "target_lang": "de"}')
    pad = ids["<pad>"]
    config = transformers.MarianConfig(
        vocab_size=len(ids), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, pad_token_id=pad,
        decoder_start_token_id=pad, eos_token_id=0, bos_token_id=0, forced_eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.MarianMTModel(config).save_pretrained(tmp_path)
    return tmp_path


def test_marian_has_a_tokenizer_for_each_side_and_ships_with_the_first(marian: Path, tmp_path: Path) -> None:
    known = transformers.AutoTokenizer.from_pretrained(marian)
    assert not known.is_fast
    found = read_published_text(marian, True)
    spec = TextSpec.from_dict(TextSpec("bpe", found.vocabulary, 64, conventions=found.conventions).to_dict())
    assert len(spec.vocabulary) == 2
    texts = [*LINES["source"], *GERMAN, *ODD, ">>de<< who are you?"]
    for text in texts:
        assert encode_source(text, spec) == known(text).input_ids, text
        assert encode_target(text, spec)[1:] == known(text_target=text).input_ids, text
    for text in GERMAN:
        ids, blank = known(text_target=text).input_ids, known.convert_tokens_to_ids("\u2581")
        for row in (ids, [blank, blank, *ids[:-1], blank, blank], [blank], []):
            assert tokenizer(spec).decode(row) == known.decode(row, skip_special_tokens=True)
    section, _ = huggingface_model(f"hf:{marian}", True, "translation")
    options = {"checkpointing": False, "languages": None, "prefix": "", **section}
    loaded = load_pretrained("MarianMTModel", marian, 32, options)
    task = tasks.get("translation")(loaded.spec, losses.get("cross_entropy")(), None)
    pairs = LINES["source"][: len(GERMAN)], GERMAN
    batch = task.prepare(ParallelTexts(pairs, spec, "train").gather(torch.arange(len(GERMAN))))
    ours, trained = loaded.model.eval(), transformers.MarianMTModel.from_pretrained(marian).eval()
    total = task.loss(ours, batch)
    (total.total / total.count).backward()
    rows = known(pairs[0], text_target=pairs[1])
    collate = transformers.DataCollatorForSeq2Seq(known, trained)
    trained(**collate([dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)])).loss.backward()
    for (name, parameter), other in zip(ours.inner.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-6, msg=name)
    (tmp_path / "shipped").mkdir()
    about = {"arch": "hf", "preprocess": task.preprocessing()}
    exports.get("huggingface")(loaded.model.eval(), task.example(1), tmp_path / "shipped" / "model.safetensors", about)
    shipped = transformers.AutoTokenizer.from_pretrained(tmp_path / "shipped")
    assert [shipped(text).input_ids for text in LINES["source"]] == [known(text).input_ids for text in LINES["source"]]
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "shipped").eval()
    assert theirs.generation_config.decoder_start_token_id == known.pad_token_id
    assert theirs.generation_config.bad_words_ids == [[known.pad_token_id]]
    again = read_published_text(tmp_path / "shipped", True)
    refound = TextSpec("bpe", again.vocabulary, 64, conventions=again.conventions)
    assert [encode_target(text, refound) for text in GERMAN] == [encode_target(text, spec) for text in GERMAN]


def test_m2m100_has_one_model_and_its_languages(tmp_path: Path) -> None:
    train(tmp_path / "sentencepiece.bpe.model", [*LINES["source"], *GERMAN], model_type="bpe", vocab_size=120)
    ids = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for piece in pieces(tmp_path / "sentencepiece.bpe.model"):
        ids.setdefault(piece, len(ids))
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "M2M100Tokenizer"}')
    config = {"model_type": "m2m_100", "vocab_size": len(ids) + 120, "pad_token_id": 1, "decoder_start_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": 2}))
    found = read_published_text(tmp_path, True, ("en", "de"))
    spec = TextSpec("bpe", found.vocabulary, 64, conventions=found.conventions)
    known = transformers.AutoTokenizer.from_pretrained(tmp_path, src_lang="en", tgt_lang="de")
    assert len(found.vocabulary) == 1 and len(found.conventions.before) == len(found.conventions.target_before) == 1
    for text in [*LINES["source"], *GERMAN]:
        assert encode_source(text, spec) == known(text).input_ids
        assert encode_target(text, spec)[1:] == known(text_target=text).input_ids


@pytest.mark.parametrize(
    ("name", "file", "options"),
    [
        ("T5", "spiece.model", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),
        ("Llama", "tokenizer.model", {"model_type": "bpe", "byte_fallback": True, "vocab_size": 340}),
    ],
)
def test_a_model_of_sentencepiece_alone_is_a_tokenizer(
    name: str, file: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / file, LINES["source"], **options)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name.lower()}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": f"{name}Tokenizer"}))
    found = read_published_text(tmp_path, name == "T5")
    known = transformers.AutoTokenizer.from_pretrained(tmp_path)
    spec = TextSpec("bpe", found.vocabulary, 64, conventions=found.conventions)
    for text in [*LINES["source"], *ODD]:
        assert encode_source(text, spec) == known(text).input_ids, text
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(
        MachineError, match=f"{file}, without a tokenizer.json beside it, needs sentencepiece"
    ) as caught:
        read_published_text(tmp_path, name == "T5")
    assert caught.value.hint == "pip install 'bigmodel[sentencepiece]'"


def test_a_damaged_model_is_one_line(marian: Path) -> None:
    from bigmodel_cli.models.pretrained.sentencepiece_files import tokenizers_of

    known = transformers.AutoTokenizer.from_pretrained(marian)
    for damage in (b"\x00", b"\xff" * 40, (marian / "target.spm").read_bytes()[:-7]):
        (marian / "target.spm").write_bytes(damage)
        with pytest.raises(InputError) as caught:
            tokenizers_of(known, marian)
        assert "target.spm" in caught.value.line and "\n" not in caught.value.line
