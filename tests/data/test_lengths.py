"""What does not fit is counted and said, empty lines stay empty, and a batch changes no score."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.core.recipe import DataSection, PlacementSection
from bigmodel_cli.core.registry import losses, models, tasks
from bigmodel_cli.core.sources import VariableLengthSource
from bigmodel_cli.core.specs import TextSpec
from bigmodel_cli.core.tokenizers.bpe_tokenizer import BPETokenizer
from bigmodel_cli.core.tokenizers.tokens import require_package, train_bpe
from bigmodel_cli.data.batches import Batches
from bigmodel_cli.data.text.labelled import InMemory, build_labelled
from bigmodel_cli.data.text.parallel import build_parallel, read_pair
from bigmodel_cli.data.text.windows import build_windows
from bigmodel_cli.engine.build.data import load_data
from bigmodel_cli.engine.device.placement import choose_placement
from bigmodel_cli.engine.training.evaluate import collect, evaluate
from bigmodel_cli.tasks.beam import length_limits

TEXTS = ["Two  words,\tand Ümläute – ok.\n", "a" * 40 + " 日本語 🙂", " lead and trail  ", "naïve café"]


def sentence_piece() -> str:
    """A tokenizer that writes blanks as ▁, puts one in front, composes characters (NFKC), and falls back to bytes."""
    library = require_package("tokenizers")
    vocabulary = {f"<0x{i:02X}>": i for i in range(256)} | {"▁": 256, "a": 257, "n": 258, "<unk>": 259}
    found = library.Tokenizer(library.models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    found.normalizer = library.normalizers.NFKC()
    found.pre_tokenizer = library.pre_tokenizers.Metaspace(prepend_scheme="always")
    return found.to_str()  # type: ignore[no-any-return]


def word_piece() -> str:
    """A tokenizer that drops blanks and accents."""
    library = require_package("tokenizers")
    letters = "abcdefghijklmnopqrstuvwxyz,."
    vocabulary = {"[UNK]": 0} | {c: i + 1 for i, c in enumerate(letters)}
    vocabulary |= {f"##{c}": len(vocabulary) + i for i, c in enumerate(letters)}
    found = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token="[UNK]"))
    found.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    found.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    return found.to_str()  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [sentence_piece, word_piece, lambda: train_bpe(TEXTS, 300)])
@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_the_tokens_are_those_of_the_text(make: Any, text: str) -> None:
    known = BPETokenizer(make())
    ids, sizes = known.encode_sized(text)
    assert list(ids) == list(known.encode(text)) and sizes.sum() == len(text.encode()) and (sizes >= 0).all()
    if known.names_every_byte:
        assert sum(known.byte_lengths()[i] for i in ids) == len(text.encode())


def test_bits_per_byte_count_the_texts_own_bytes() -> None:
    text = " ".join(TEXTS) * 3
    for kind, vocabulary in (("bpe", (sentence_piece(),)), ("bpe", (word_piece(),)), ("byte", ())):
        bundle = build_windows(TextSpec(kind, vocabulary, 8), {"val": text})
        source = bundle.load["val"]()
        task = tasks.get("language_modeling")(bundle.spec, losses.get("cross_entropy")(), None)
        batch = task.prepare(source.gather(torch.arange(len(source))))
        out = task.outputs(lambda tokens, targets, loss: torch.ones(targets.shape), batch)
        first = 1 if kind == "byte" else int(source.sizes[0])  # which nothing predicts
        assert int(out["bytes"].sum()) == len(text.encode()) - first, kind


@pytest.mark.parametrize("make", [sentence_piece, word_piece, lambda: train_bpe(TEXTS, 300)])
@pytest.mark.parametrize("pack", [False, True])
def test_bits_per_byte_of_answers_count_the_answers_own_bytes(make: Any, pack: bool, tmp_path: Path) -> None:
    from bigmodel_cli.core.registry import data, losses, tasks

    (tmp_path / "t.json").write_text(make())
    for name, sides in (("prompt", ["completion"]), ("messages", [])):
        rows = [{"prompt": f"p{i}", "completion": text} for i, text in enumerate(TEXTS * 3)]
        if not sides:
            turns = [[("user", row["prompt"]), ("assistant", row["completion"])] for row in rows]
            rows = [{"messages": [{"role": role, "content": said} for role, said in turn]} for turn in turns]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = {"path": str(file), "tokenizer": str(tmp_path / "t.json"), "context": 256, "val_share": 0.5}
        bundle = data.get("chat_file")(tmp_path, pack=pack, **options)
        task = tasks.get("language_modeling")(bundle.spec, losses.get("cross_entropy")(), None)
        source = bundle.load["val"]()
        out = task.outputs(
            lambda tokens, targets, loss, document=None: torch.ones(targets.shape),
            task.prepare(source.gather(torch.arange(len(source)))),
        )
        assert int(out["bytes"].sum()) == sum(len(text.encode()) for text in (TEXTS * 3)[6:]), name


def test_the_context_is_that_of_the_longest_text(tmp_path: Path) -> None:
    def built(words: int, **options: Any) -> Any:
        splits = {"train": InMemory(["a b " * 8, "b a " * (words // 2)], [0, 1])}
        return build_labelled(splits, ["x", "y"], "word", options.get("like"), options.get("context"), tmp_path)

    assert built(20).spec.context == 64 and built(200).spec.context == 200
    whole, cut = built(2000), built(200, context=32)
    whole.load["train"](), cut.load["train"]()
    assert whole.spec.context == 512
    assert "train: 1 of 2 texts are longer than data.context = 512 tokens, and cut there" in whole.notes
    assert "train: 1 of 2 texts are longer than data.context = 32 tokens, and cut there" in cut.notes
    assert built(200, like=cut.spec).spec.context == 32  # as the checkpoint sees them


def test_pairs_that_are_cut_or_empty_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n" + "x " * 40 + "\n")
    (tmp_path / "b.txt").write_text("eins\nnull\n  \nx\n")
    notes: list[str] = []
    pairs = read_pair(tmp_path / "a.txt", tmp_path / "b.txt", notes=notes)
    assert pairs[1] == ["eins", "x"] and notes == ["2 pairs not used: an empty line in a.txt or b.txt"]
    bundle = build_parallel({"train": pairs}, "word", None, 300, 16)
    bundle.load["train"]()
    assert list(bundle.notes) == ["train: 1 of 2 sources are longer than data.context = 16 tokens, and cut there"]


def test_an_answer_may_be_longer_than_its_source_whatever_the_batch() -> None:
    spec = TextSpec("word", ("<pad>", "<unk>", "<start>", "<end>", "a"), 64)
    together = length_limits(torch.tensor([[4, 0, 0], [4, 4, 4]]), spec)
    assert together.tolist() == [51, 53] == [int(length_limits(torch.tensor([r]), spec)) for r in ([4], [4, 4, 4])]
    assert int(length_limits(torch.ones(1, 40, dtype=torch.int64), spec)) == 64


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    file = tmp_path / "t.csv"
    rows = [f"{'good fine' if i % 2 else 'bad poor'} {'word ' * (i % 9)},{'pn'[i % 2]}" for i in range(60)]
    file.write_text("\n".join(["text,label", *rows]))
    return file


def test_predict_says_what_it_cuts_and_keeps_empty_lines(classes: Path, run_cli: Any, tmp_path: Path) -> None:
    train = run_cli("train", "text-cnn", "--data", classes, "--max-steps", 3, "--set", "data.context=8", "--out", "r")
    assert train.returncode == 0 and "are longer than data.context = 8 tokens" in train.stderr, train.stderr
    (tmp_path / "x.txt").write_text("good\n\n" + "fine " * 20 + "\n\nbad\n")
    said = run_cli("predict", "r", tmp_path / "x.txt", "--json")
    names = [json.loads(line)["file"].rpartition(":")[2] for line in said.stdout.splitlines()]
    assert names == ["1", "2", "3", "4", "5"]
    assert "1 of 5 texts are longer than the model's 8 tokens, and cut there" in said.stderr
    assert "2 of 5 texts are empty" in said.stderr


def test_empty_lines_are_translated_to_empty_lines(run_cli: Any, tmp_path: Path) -> None:
    rows = [{"source": f"w{i % 7} w{i % 5}", "target": f"v{i % 7} v{i % 5}"} for i in range(40)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ("--set", "model.width=16", "--set", "model.layers=1", "--set", "model.heads=2", "--max-steps", "2")
    train = run_cli("train", "transformer", "--data", tmp_path / "p.jsonl", *small, "--out", "r")
    assert train.returncode == 0, train.stderr
    (tmp_path / "x.txt").write_text("w1 w2\n\n   \nw3\n")
    said = run_cli("predict", "r", tmp_path / "x.txt", "--json")
    answers = [json.loads(line) for line in said.stdout.splitlines()]
    assert len(answers) == 4
    assert all(row.keys() == {"file", "text", "probability"} for row in answers)
    texts = [row["text"] for row in answers]
    assert texts[1] == texts[2] == "" and texts[0] and texts[3]
    assert run_cli("predict", "r", tmp_path / "x.txt", "--out", "x.csv").returncode == 0
    rows = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
    assert [row["prediction"] for row in rows] == texts
    assert [float(row["probability"]) for row in rows] == [row["probability"] for row in answers]


def test_inspect_says_what_is_cut(classes: Path) -> None:
    section = DataSection(name="labelled_file", path=str(classes), context=4)
    bundle = load_data(section)
    for load in bundle.load.values():
        load()
    assert any("longer than data.context = 4" in note for note in bundle.notes)


def test_batches_hold_texts_of_similar_length_and_outputs_come_in_the_order_of_the_texts(tmp_path: Path) -> None:
    """Training sees each text once; padding is all but gone; an evaluation answers text by text as one at a time."""
    texts = [" ".join(["word"] * (1 + 7 * i % 60)) for i in range(120)]
    bundle = build_labelled(
        {"train": InMemory(texts, [i % 2 for i in range(120)])}, ("a", "b"), "word", None, None, tmp_path
    )
    source = bundle.load["train"]()
    assert isinstance(source, VariableLengthSource)
    assert source.lengths.tolist() == [len(text.split()) for text in texts]
    seen = list(Batches(source, 10, seed=0).steps(0))
    assert torch.cat([raw["index"] for raw in seen]).sort().values.tolist() == list(range(120))
    assert sum(raw["tokens"].numel() for raw in seen) < 1.1 * source.lengths.sum()

    spec = bundle.spec
    assert isinstance(spec, TextSpec)
    model = models.get("text-encoder")(spec, layers=1).eval()
    task = tasks.get("text_classification")(spec, losses.get("cross_entropy")(), lambda tokens, key: tokens)
    placement = choose_placement(PlacementSection())
    outputs, _ = collect(model, task, source, placement, 16)
    assert outputs["index"].tolist() == list(range(120))
    with torch.inference_mode():
        alone = torch.cat([model(source.gather(torch.tensor([i]))["tokens"].long()) for i in range(120)])
    torch.testing.assert_close(outputs["logits"], alone, atol=1e-5, rtol=1e-5)
    sums = evaluate(model, task, source, placement, 16)
    assert sums is not None and sums["loss"] == pytest.approx(outputs["loss"].mean().item(), rel=1e-5)
