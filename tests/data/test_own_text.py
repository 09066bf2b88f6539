"""One's own texts: every format gives the texts it holds, and what is wrong is named in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import Run

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.tokenizers.tokens import tokenizer, train_bpe
from bigmodel_cli.data.user_path import source_for


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def text_of(bundle, split: str) -> str:
    return tokenizer(bundle.spec).decode(bundle.load[split]().tokens.tolist())


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_a_file_is_cut_at_its_end_for_validation(tmp_path: Path, kind: str) -> None:
    text = "Grüße, " * 50
    bundle = data.get("text_files")(tmp_path, path=str(write(tmp_path / "a.txt", text)), tokenizer=kind, context=8)
    assert text_of(bundle, "train") + text_of(bundle, "val") == text
    assert len(text_of(bundle, "val")) == 35


def test_documents_end_and_lie_in_one_split_each(tmp_path: Path) -> None:
    rows = [{"text": f"document {i}\u2028"} for i in range(10)]
    file = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    bundle = data.get("text_files")(tmp_path, path=str(file), context=8)
    tokens = bundle.load["train"]().tokens
    held = int((bundle.load["val"]().tokens == 256).sum())
    assert held >= 1 and int((tokens == 256).sum()) == 10 - held
    whole = {row["text"] for row in rows}
    sides = [set(re.findall("document .\u2028", text_of(bundle, split))) for split in ("train", "val")]
    assert sides[0] | sides[1] == whole and not sides[0] & sides[1] and len(sides[1]) == held
    end = data.get("text_files")(tmp_path, path=str(file), context=8, val_share=0.1)  # as earlier versions did
    assert text_of(end, "val") == rows[9]["text"]
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(3):
        write(folder / f"{i}.txt", f"text {i}")
    assert text_of(data.get("text_files")(tmp_path, path=str(folder), val_share=0.1), "train") == "text 0text 1"


def test_tables_and_lines_give_texts_and_labels(tmp_path: Path) -> None:
    rows = [("a, good one", "yes", "train"), ("bad", "no", "train"), ("fine", "yes", "val")]
    table = "text,label,split\n" + "".join(f'"{t}",{k},{s}\n' for t, k, s in rows)
    lines = "\n".join(json.dumps({"text": t, "label": k, "split": s}) for t, k, s in rows)
    for file in (write(tmp_path / "a.csv", table), write(tmp_path / "a.jsonl", lines)):
        assert source_for(file) == "labelled_file"
        bundle = data.get("labelled_file")(tmp_path, path=str(file))
        assert bundle.spec.classes == ("no", "yes")
        train = bundle.load["train"]()
        assert [train.name(i) for i in range(2)] == ["train[0] a, good one", "train[1] bad"]
        assert train.labels.tolist() == [1, 0]
        assert bundle.load["val"]().gather(torch.tensor([0]))["label"].tolist() == [1]


def test_pairs_from_lines_and_from_two_files(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"source": f"s{i}", "target": f"t{i}"}) for i in range(10))
    file = write(tmp_path / "a.jsonl", lines)
    assert source_for(file) == "parallel_file"
    two = [write(tmp_path / f"x.{e}", "".join(f"{e}{i}\n" for i in range(10))) for e in "st"]
    for options in ({"path": str(file)}, {"path": str(two[0]), "target": str(two[1])}):
        bundle = data.get("parallel_file")(tmp_path, tokenizer="word", val_share=0.1, **options)
        assert (len(bundle.load["train"]()), len(bundle.load["val"]())) == (9, 1)
        assert bundle.load["val"]().sources == ["s9"]
    write(tmp_path / "x.t", "one\n")
    with pytest.raises(InputError, match=r"10 lines, x\.t has 1"):
        data.get("parallel_file")(tmp_path, path=str(two[0]), target=str(two[1]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9 \0 au lait", "1 of its 14 bytes are NUL"),
        ("a.txt", b"\xcf\xf0\xe8\xe2\xe5\xf2", "not utf-8: byte 0 is 0xcf, and 100% of the bytes are not ASCII"),
        ("a.txt", b"", "it is empty"),
        ("a.jsonl", b"", "it is empty"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"words": "a"}', "a.jsonl:1: no column text; it has words"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: not JSON"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "a.jsonl:1: not JSON"),
        ("gone.txt", None, "no such file"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        data.get("text_files")(tmp_path, path=str(tmp_path / name))
    assert len(caught.value.line) <= 200


def test_texts_to_classify_are_framed_and_filled_up_as_their_tokenizer_does_it(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    words = ["[UNK]", "a", "good", "film", "[CLS]", "[SEP]", "[PAD]"]
    made = library.Tokenizer(library.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    made.post_processor = library.processors.BertProcessing(("[SEP]", 5), ("[CLS]", 4))
    own = write(tmp_path / "tokenizer.json", made.to_str())
    file = write(tmp_path / "a.csv", "text,label\na good film,yes\na [SEP],no\na a a a a a a,yes\n")
    bundle = data.get("labelled_file")(tmp_path, path=str(file), tokenizer=str(own), context=6)
    batch = bundle.load["train"]().gather(torch.arange(3))
    assert batch["tokens"].tolist() == [[4, 1, 2, 3, 5, 6], [4, 1, 0, 0, 0, 5], [4, 1, 1, 1, 1, 5]]
    assert bundle.spec.classes == ("no", "yes")


def test_latin_1_where_it_is_declared(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "café au lait " * 5, "latin-1")
    bundle = data.get("text_files")(tmp_path, path=str(file), encoding="latin-1", tokenizer="char")
    assert "é" in bundle.spec.vocabulary


def test_a_trained_tokenizer_gives_the_text_back_and_a_hostile_one_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    text = "the theme of the thesis, théâtre " * 20
    file, own = write(tmp_path / "a.txt", text), write(tmp_path / "tokenizer.json", train_bpe([text], 320))
    bundle = data.get("text_files")(tmp_path, path=str(file), tokenizer=str(own), context=8)
    known = tokenizer(bundle.spec)
    ids = known.encode(text)
    assert known.decode(ids) == text and len(ids) < len(text)
    assert sum(known.byte_lengths()[i] for i in ids) == len(text.encode())
    for broken in ("", "{}", "[" * 10_000, '{"model": {"type": "BPE", "vocab": {"a": 7}, "merges": []}}'):
        write(own, broken)
        with pytest.raises(InputError, match="tokenizer"):
            data.get("text_files")(tmp_path, path=str(file), tokenizer=str(own))


def test_what_goes_on_keeps_the_tokenizer_of_its_start(tmp_path: Path) -> None:
    """Other pairs, or other reviews, are cut like the ones that were trained on, not by a vocabulary of their own."""
    for name, first in (("parallel_file", "source\ttarget\n"), ("labelled_file", "text\tlabel\n")):
        old, new = (write(tmp_path / f"{i}.tsv", first + f"{w} {w}\tB {w}\n" * 9) for i, w in enumerate(("aaa", "cc")))
        start = data.get(name)(tmp_path, path=str(old)).spec
        assert start.tokenizer == ("bpe" if name == "parallel_file" else "wordpunct")
        on = data.get(name)(tmp_path, start.with_(context=32), path=str(new)).spec
        assert (on.tokenizer, on.vocabulary, on.context) == (start.tokenizer, start.vocabulary, 32)
        assert on.classes == (("B cc",) if name == "labelled_file" else ())
        own = data.get(name)(tmp_path, start, path=str(new), tokenizer="word").spec
        assert "cc" in own.vocabulary and "aaa" not in own.vocabulary


def test_inspect_says_how_each_file_is_read(run_cli: Run, tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,label\n" + "fine,yes\ndull,no\n" * 10)
    write(tmp_path / "a.tsv", "source\ttarget\n" + "a b\tB A\n" * 10)
    write(tmp_path / "a.txt", "to be or not to be\n" * 10)
    for file, source in (("a.csv", "labelled_file"), ("a.tsv", "parallel_file"), ("a.txt", "text_files")):
        done = run_cli("data", "inspect", file, "--json")
        found = json.loads(done.stdout)
        assert found["read as"] == source and found["classes"] == ({"no": 10, "yes": 10} if file == "a.csv" else {})
    assert found["train tokens"] == 171 and found["val tokens"] == 19
    (tmp_path / "own").mkdir()
    for split, yes in (("train", 2), ("val", 8)):  # balanced together, and neither on its own
        write(tmp_path / f"own/{split}.csv", "text,label\n" + "fine,yes\n" * yes + "dull,no\n" * (10 - yes))
    found = json.loads(run_cli("data", "inspect", "own", "--json").stdout)
    assert found["classes"] == {"no": 10, "yes": 10} and "8 of 'no' (80%), 2 of 'yes'" in "".join(found["notes"])
    write(tmp_path / "b.jsonl", '{"text": [3]}\n')
    wrong = run_cli("data", "inspect", "b.jsonl")
    assert wrong.returncode == 2 and "b.jsonl:1" in wrong.stderr
