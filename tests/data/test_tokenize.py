"""Token shards: the same bytes whatever the number of processes, whole or not there, read without being loaded."""

from __future__ import annotations

import dataclasses
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.files.owners import Owner, current_owner
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.tokenizers.tokens import tokenizer, train_bpe
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.data.text.tokenizer_choice import choose_tokenizer, convert_gpt2_files
from bigmodel_cli.data.token_shards import tokenizing
from bigmodel_cli.data.token_shards.files import ShardWriter, read_index
from bigmodel_cli.data.user_path import source_for

BYTES = TextSpec("byte", (), 8)
VERSE = "".join(f"Line {i * i} of an epic, über alles.\n" + "\n" * (i % 7 == 0) for i in range(400))


def corpus(folder: Path) -> Path:
    """Two texts, an empty one, one in Windows-1252 with its own newlines, and JSON lines."""
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text(VERSE)
    (folder / "b.md").write_text("short")
    (folder / "c.txt").write_text("")
    (folder / "deep" / "d.txt").write_bytes(VERSE.replace("\n", "\r\n").encode("cp1252"))
    rows = [{"text": f"document {i}\n é"} for i in range(300)] + [{"text": ""}]
    (folder / "e.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows))
    )
    return folder


def expected(folder: Path) -> list[str]:
    return [VERSE, "short", VERSE, *(f"document {i}\n é" for i in range(300))]


def made(folder: Path, out: Path, spec: TextSpec, processes: int, shard_tokens: int = 5000) -> Any:
    units, notes = tokenizing.plan_units(tokenizing.list_text_files(folder), "auto")
    assert len(notes) == 1 and "d.txt" in notes[0]
    with ShardWriter(out, spec, shard_tokens) as writer:
        tokenizing.write_units(units, spec, writer, processes, lambda *_: None)
        return writer.finish({"files": 5})


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_any_number_of_processes_makes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(tokenizing, "UNIT", 700)
    folder = corpus(tmp_path / "corpus")
    units, _ = tokenizing.plan_units(tokenizing.list_text_files(folder), "auto")
    assert len(units) > 50
    texts = [tokenizing.train_tokenizer(units, 400, lambda *_: None) for _ in range(2)]
    assert texts[0] == texts[1]
    spec = TextSpec("bpe", (texts[0],), 8)
    one, three = (made(folder, tmp_path / str(n), spec, n) for n in (1, 3))
    assert contents(tmp_path / "1") == contents(tmp_path / "3") and len(one["shards"]) > 2
    assert one["documents"] == 303 and one == three
    # Cut into units and put together, a text has the tokens that it has as a whole.
    index, known = read_index(tmp_path / "1", 8), tokenizer(spec)
    found = data.get("token_shards")(tmp_path, path=str(tmp_path / "1"))
    ids = [i for split in ("train", "val") for i in every(found, split)]
    want = [i for text in expected(folder) for i in (*known.encode(text), known.special["<end>"])]
    assert (
        ids == want and index.damaged_files() == [] and one["bytes"] == sum(len(t.encode()) for t in expected(folder))
    )


def every(bundle: Any, split: str) -> list[int]:
    tokens = bundle.load[split]().tokens
    return tokens[torch.arange(len(tokens))[None]][0].tolist()  # type: ignore[no-any-return]


def test_windows_of_shards_are_those_of_the_same_text_in_memory(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "corpus")
    made(folder, tmp_path / "shards", BYTES, 1, shard_tokens=999)
    assert source_for(tmp_path / "shards") == "token_shards"
    options = {"context": 16, "val_share": 0.1}
    mapped = data.get("token_shards")(tmp_path, path=str(tmp_path / "shards"), separate=True, **options)
    total = every(mapped, "train") + every(mapped, "val")
    train = mapped.load["train"]()
    assert total[len(train.tokens) - 1] == 256, "the splits meet where a document ends"
    assert abs(len(train.tokens) / len(total) - 0.9) < 0.01
    batch = train.gather(torch.tensor([0, 70, len(train) - 1]))
    for row, index in zip(batch["tokens"], (0, 70, len(train) - 1), strict=True):
        want = [total[(16 * index + i) % len(train.tokens)] for i in range(32)]
        assert row.tolist() == want
    for row, document in zip(batch["tokens"].tolist(), batch["document"].tolist(), strict=True):
        assert document == [row[:i].count(256) for i in range(32)]


def test_tokens_whose_names_do_not_tell_their_bytes_count_the_texts_own_bytes_on_average(tmp_path: Path) -> None:
    from test_lengths import sentence_piece

    values = json.loads(sentence_piece())
    values["model"]["vocab"]["<end>"] = 260
    spec = TextSpec("bpe", (json.dumps(values),), 16)
    folder = corpus(tmp_path / "corpus")
    about = made(folder, tmp_path / "shards", spec, 1, shard_tokens=999)
    bundle = data.get("token_shards")(tmp_path, path=str(tmp_path / "shards"), context=16, val_share=0.1)
    sizes = [float(bundle.load[split]().sizes.double().sum()) for split in ("train", "val")]
    assert sum(sizes) == pytest.approx(about["bytes"], rel=1e-5) and "mean" in bundle.notes[0]


def gone_owner() -> Owner:
    """A process of this host that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return dataclasses.replace(current_owner(), pid=process.pid)


def test_killed_between_the_two_renames_the_old_shards_come_back(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "corpus")
    made(folder, tmp_path / "out", BYTES, 1)
    before = contents(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / f".out.{gone_owner().token}.old")
    with pytest.raises(InputError, match="it holds something"):
        made(folder, tmp_path / "out", BYTES, 1)
    assert contents(tmp_path / "out") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "out"]


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = corpus(tmp_path / "corpus")
    (tmp_path / f".out.{gone_owner().token}.new").mkdir()  # of a process that was killed
    (folder / "deep" / "f.jsonl").write_text('{"text": "fine"}\n' * 30 + '{"text": 3.5}\n')
    monkeypatch.setattr(tokenizing, "UNIT", 100)
    with pytest.raises(InputError, match=r"f\.jsonl:31: "):
        made(folder, tmp_path / "out", BYTES, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus"]
    (folder / "deep" / "f.jsonl").unlink()
    made(folder, tmp_path / "out", BYTES, 1)
    before = contents(tmp_path / "out")
    with pytest.raises(InputError):
        made(folder, tmp_path / "out", BYTES, 1)
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "out", BYTES, 9, overwrite=True) as writer:
        writer.add(b"\1\0\2\0", [2], 2)
        raise RuntimeError("whatever comes between")
    assert contents(tmp_path / "out") == before
    with ShardWriter(tmp_path / "out", BYTES, 9, overwrite=True) as writer:
        writer.add(b"\1\0\2\0", [2], 2)
        writer.finish({})
    assert (tmp_path / "out" / "00000.bin").read_bytes() == b"\1\0\2\0"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "out"]
    mine = {path: path.is_dir() or path.read_bytes() for path in folder.rglob("*")}
    with pytest.raises(InputError):
        ShardWriter(folder, BYTES, 9, overwrite=True)
    assert {path: path.is_dir() or path.read_bytes() for path in folder.rglob("*")} == mine  # no shards, but ours


MEASURE = """
import resource, sys, torch
from pathlib import Path
from bigmodel_cli.core.registry import data

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

source = data.get("token_shards")(Path(), path=sys.argv[1], context=256).load["train"]()
source.gather(torch.arange(8))
before = anonymous()
for start in range(0, len(source), 8):
    source.gather(torch.arange(start, min(start + 8, len(source))))
print(anonymous() - before)
"""


def test_memory_stays_flat(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "big", BYTES, 8_000_000) as writer:
        for _ in range(20):
            writer.add(b"\7\0" * 1_000_000, [1_000_000], 1_000_000)  # 40 MB in all
        writer.finish({})
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path / "big"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4_000, "kB, of 40 MB read"


def test_gpt2s_tokens_come_from_its_two_files_or_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("BIGMODEL_MIRROR", "http://127.0.0.1:9")
    with pytest.raises(MachineError) as caught:
        choose_tokenizer("gpt2", None, 8, tmp_path)
    assert "cannot download gpt2's tokenizer" in caught.value.line and "vocab.bpe and encoder.json" in str(
        caught.value.hint
    )
    # The same two files, of a small tokenizer.
    values = json.loads(train_bpe([VERSE], 400, ("<|endoftext|>",)))
    merges = [" ".join(m) if isinstance(m, list) else m for m in values["model"]["merges"]]
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (tmp_path / "encoder.json").write_text(json.dumps(values["model"]["vocab"]))
    ours, theirs = (tokenizer(TextSpec("bpe", (t,), 8)) for t in (convert_gpt2_files(tmp_path), json.dumps(values)))
    text = VERSE + "  <|endoftext|> naïve\t123 \n\n don't"
    assert ours.encode(text) == theirs.encode(text) and ours.decode(ours.encode(text)) == text
    assert ours.special["<end>"] == theirs.special["<end>"] == 0


def test_the_command(tmp_path: Path, run_cli: Any) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "a.txt").write_text(VERSE)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(VERSE.encode()))
    done = run_cli("data", "tokenize", "a.txt", "--vocab-size", 300, "--processes", 1, "--json")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["vocabulary_size"] == 300 and values["documents"] == 1 and values["type"] == "uint16"
    done = run_cli("data", "tokenize", "a.txt", "--tokenizer", "char", "--out", "chars", "--processes", 1)
    assert done.returncode == 0 and "next: bigmodel train gpt-nano --data" in done.stdout, done.stderr
    done = run_cli("data", "inspect", "shards", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["tokens"] == values["tokens"], done.stderr
    train = (
        "train",
        "gpt",
        "--set",
        "model.width=16",
        "--set",
        "model.layers=1",
        "--data",
        "./shards",
        "--max-steps",
        2,
    )
    done = run_cli(*train, "--out", "run")
    assert done.returncode == 0, done.stderr
    for arguments, said in (
        (("a.txt", "--out", "chars"), "it holds something"),
        (("a.txt", "--out", "x", "--tokenizer", "byte", "--vocab-size", 400), "together"),
        (("gone.txt", "--out", "x"), "gone.txt: No such file"),
        (("/dev/zero", "--out", "x"), "/dev/zero: no plain file"),
        (("a.txt.gz", "--out", "x"), "a.txt.gz: no plain file"),
        (("a.txt", "--out", "x", "--tokenizer", "chr"), "data.tokenizer = 'chr'"),
    ):
        done = run_cli("data", "tokenize", *arguments)
        assert done.returncode == 2 and said in done.stderr and not (tmp_path / "x").exists(), done.stderr
