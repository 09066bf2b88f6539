"""Text from strangers: JSON lines, tokenizers and shards end in data or in one line, with its place."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import pytest
import torch

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.tokenizers.tokens import tokenizer, train_bpe
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.data.token_shards.files import ShardWriter, read_index
from bigmodel_cli.data.user_path import source_for

GOOD = {
    "text_files": b'{"text": "one"}\n{"text": "two"}\n',
    "chat_file": b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 2,
    "preference_file": b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 2,
}


def talk(content: bytes, role: bytes = b"assistant") -> bytes:
    return b'{"messages": [{"role": "' + role + b'", "content": ' + content + b"}]}\n"


LINES: list[tuple[str, bytes, str]] = [
    ("text_files", b'{"text": "' + b"x" * 10_000_000 + b'"}', ":3: 10000012 characters"),
    ("text_files", b"[" * 200_000, ":3: not JSON"),
    ("text_files", b'{"a":' * 200_000, ":3: not JSON"),
    ("text_files", b'{"text": ' + b"[" * 500 + b"]" * 500 + b"}", ":3: text is a list"),
    ("text_files", b'{"text": "a", "text": "b"}', ":3: not JSON: duplicate key 'text'"),
    ("text_files", b'{"text": "a", "n": {"b": 1, "b": 2}}', ":3: not JSON: duplicate key 'b'"),
    ("text_files", b'{"text": NaN}', ":3: not JSON: NaN is not a number"),
    ("text_files", b'{"text": "a", "score": -Infinity}', ":3: not JSON: -Infinity is not a number"),
    ("text_files", b'{"text": "a", "score": ' + b"9" * 100_000 + b"}", ":3: not JSON"),
    ("text_files", b'{"text": null}', ":3: text is null"),
    ("text_files", b'{"text": {"a": 1}}', ":3: text is an object"),
    ("text_files", b'{"text": true}', ":3: text is true or false"),
    ("text_files", b'{"words": "a"}', ":3: no 'text'"),
    ("text_files", b"{}", ":3: no 'text'"),
    ("text_files", b'["text"]', ":3: a list"),
    ("text_files", b'"text"', ":3: text; expected an object"),
    ("text_files", b'{"text": "a"', ":3: not JSON"),
    ("text_files", b'{"text": "a"} {"text": "b"}', ":3: not JSON"),
    ("text_files", b'{"text": "caf\xe9"}', ":3: not UTF-8: a byte is 0xe9"),
    ("text_files", b'{"text": "\xed\xa0\x80"}', ":3: not UTF-8"),
    ("text_files", b'{"text": "\\ud800 alone"}', ":3: text character 0 is half a surrogate pair"),
    ("text_files", b'{"text": "\0"}', "NUL"),
    ("text_files", b'{"text": "\x1b[31m"}', ":3: not JSON"),
    ("text_files", b"\xff\xfe{\0", ":3: not UTF-8"),
    ("chat_file", b'{"messages": "hello"}', ":3: messages are not a list"),
    ("chat_file", b'{"messages": []}', ":3: messages are not a list"),
    ("chat_file", b'{"messages": [1]}', ":3: messages [0] lacks role or content"),
    ("chat_file", b'{"messages": [{"role": "assistant"}]}', ":3: messages [0] lacks role or content"),
    ("chat_file", talk(b'"a"', b"root"), ":3: messages [0] has role 'root'"),
    ("chat_file", talk(b'"a"', b"user"), ":3: messages have no turn of the assistant"),
    ("chat_file", talk(b'["a"]'), ":3: messages [0]: content is not text"),
    ("chat_file", talk(b'"\\udfff"'), ":3: messages [0]: content character 0 is half"),
    ("chat_file", talk(b'"<|user|>"'), ":3: the content of a message contains '<|user|>'"),
    ("chat_file", b'{"prompt": "a", "completion": "b"}', ":3: no 'messages'"),
    ("preference_file", b'{"prompt": "a", "chosen": "b"}', ":3: no 'rejected'"),
    ("preference_file", b'{"prompt": "a", "chosen": 3, "rejected": "c"}', ":3: chosen are not a list"),
    ("preference_file", b'{"prompt": [], "chosen": "b", "rejected": "c"}', ":3: prompt are not a list"),
    ("preference_file", b'{"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}',
     ":3: an answer that is not the assistant's"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "line", "said"), LINES, ids=[f"{s}-{m}" for s, _, m in LINES])
def test_a_hostile_line_is_refused_with_its_place(source: str, line: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(GOOD[source] + line + b"\n" + GOOD[source])
    assert source_for(file) == source
    refused(lambda: data.get(source)(tmp_path, path=str(file)), said)


def refused(do: Callable[[], Any], said: str) -> None:
    clock = time.monotonic()
    with pytest.raises(InputError) as caught:
        do()
    line = caught.value.line
    assert said in line and len(line) <= 200 and line.isprintable() and caught.value.exit_code == 2
    assert time.monotonic() - clock < 10


def valid() -> dict[str, Any]:
    pytest.importorskip("tokenizers")
    return json.loads(train_bpe(["a text to train on, a text to cut"], 300))  # type: ignore[no-any-return]


def with_(**changes: Any) -> Callable[[], str]:
    return lambda: json.dumps({**valid(), **changes})


def model(**changes: Any) -> Callable[[], str]:
    return lambda: json.dumps({**valid(), "model": {**valid()["model"], **changes}})


def replace(pattern: Any, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def charsmap(replacement: bytes) -> dict[str, Any]:
    raw = (4).to_bytes(4, "little") + bytes(4) + replacement + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()}


def split(expression: Any) -> Callable[[], str]:
    return with_(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    )


def added(**token: Any) -> Callable[[], str]:
    plain = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    return lambda: json.dumps({**valid(), "added_tokens": [{**plain, **token}]})


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
TOKENIZERS: list[tuple[str, Callable[[], str], str]] = [
    ("deep", lambda: "[" * 300_000, "not a tokenizer"),
    ("deep parts", lambda: '{"model": {}, "normalizer": ' + '{"type": "Sequence", "normalizers": [' * 20_000, "not a"),
    ("huge", lambda: '"' + "x" * 65_000_000 + '"', "tokenizer of 65000002 bytes"),
    ("no object", lambda: "3", "it has no model"),
    ("no model", lambda: "{}", "it has no model"),
    ("model of text", lambda: '{"model": "BPE"}', "it has no model"),
    ("twice", lambda: '{"model": {}, "model": {}}', "duplicate key 'model'"),
    ("NaN score", lambda: '{"model": {"type": "Unigram", "vocab": [["a", NaN]]}}', "NaN is not a number"),
    ("infinite score", lambda: '{"model": {"type": "Unigram", "vocab": [["a", 1e999]]}}', "broken vocabulary"),
    ("no vocabulary", model(vocab={}), "a vocabulary of 0 tokens"),
    ("vocabulary of a list", model(vocab=["a"]), "a vocabulary of 1 tokens"),
    ("id of text", model(vocab={"a": "0"}), "broken vocabulary"),
    ("negative id", model(vocab={"a": -1}), "broken vocabulary"),
    ("huge id", model(vocab={"a": 0, "b": 2**31}), "broken vocabulary"),
    ("id twice", model(vocab={"a": 0, "b": 0}, merges=[]), "expected each id once"),
    ("a huge gap", model(vocab={"a": 0, "b": 1 << 20}, merges=[]), "tokenizer with 1048577 tokens"),
    ("merge of one", model(merges=["ab"]), "merge 'ab'"),
    ("merge of numbers", model(merges=[[1, 2]]), "merge '[1, 2]'"),
    ("merge of unknown", model(merges=["qq zz"]), "not a tokenizer"),
    ("a token of a page", model(vocab={"a" * 4_097: 0}, merges=[]), "a token that is too long"),
    ("unknown model", model(type="Pickle"), "model 'Pickle'"),
    ("unknown part", with_(normalizer={"type": "Exec"}), "normalizer 'Exec'"),
    ("part of text", with_(decoder="ByteLevel"), "decoder 'ByteLevel'"),
    ("parts of text", with_(normalizer={"type": "Sequence", "normalizers": "NFC"}), "parts are not a list"),
    ("many parts", with_(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 40}), "more than 32 parts"),
    (
        "doubling",
        with_(normalizer={"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * 20}),
        "lengthens texts too much",
    ),
    ("blow up", with_(normalizer=replace({"String": "a"}, "b" * 1_000_000)), "lengthens texts too much"),
    ("long prefix", with_(normalizer={"type": "Prepend", "prepend": "b" * 1_000_000}), "lengthens texts too much"),
    ("bytes of bytes", with_(normalizer={"type": "Sequence", "normalizers": [BYTES] * 20}), "lengthens texts too much"),
    ("cut to bytes", with_(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTES] * 20}), "lengthens texts"),
    ("long charsmap", with_(normalizer=charsmap(b"b" * 65)), "lengthens texts too much"),
    ("charsmap of ligatures", with_(normalizer=charsmap("\ufdfa".encode() * 4)), "lengthens texts too much"),
    (
        "charsmap of text",
        with_(normalizer={"type": "Precompiled", "precompiled_charsmap": "?"}),
        "precompiled_charsmap",
    ),
    ("regex counted bomb", split("(a+){30}$"), "it may take exponential time"),
    ("regex bounded bomb", split("(a{1,99}){1,99}$"), "it may take exponential time"),
    ("regex bomb", split("(a+)+$"), "it may take exponential time"),
    ("regex choice bomb", split("(?:a|a)*$"), "it may take exponential time"),
    ("regex open bomb", split("(a{2,}){3,}"), "it may take exponential time"),
    ("regex back", split(r"(a*)\1"), "it may take exponential time"),
    ("regex repeats", split("a{100000}"), "it may take exponential time"),
    ("regex long", split("a" * 5000), "bad regular expression"),
    ("regex number", split(7), "bad regular expression"),
    ("regex broken", split("(a"), "not a tokenizer"),
    ("added without id", added(content="x"), "has id None"),
    ("added of nothing", added(id=1, content=""), "added token"),
    ("added far away", added(id=2**40, content="x"), "has id 1099511627776"),
    ("added of text", with_(added_tokens="x"), "added_tokens are not a list"),
]


@pytest.mark.parametrize(("make", "said"), [case[1:] for case in TOKENIZERS], ids=[case[0] for case in TOKENIZERS])
def test_a_hostile_tokenizer_is_refused(make: Callable[[], str], said: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text to cut " * 20)
    (tmp_path / "tokenizer.json").write_text(make())
    options = {"path": str(tmp_path / "a.txt"), "tokenizer": str(tmp_path / "tokenizer.json")}
    refused(lambda: data.get("text_files")(tmp_path, **options), said)


def test_padding_and_truncation_of_a_file_change_no_text() -> None:
    values = valid()
    hungry = {
        "padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<pad>"},
        "truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
    }  # fmt: skip
    plain, known = (tokenizer(TextSpec("bpe", (json.dumps(v),), 8)) for v in (values, {**values, **hungry}))
    assert known.encode("a text") == plain.encode("a text")


def test_the_expressions_of_well_known_tokenizers_are_taken() -> None:
    for expression in (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}",
        r"\p{N}{1,3}(?=(?:\p{N}{3})*\b)",
    ):
        assert tokenizer(TextSpec("bpe", (split(expression)(),), 8)).size > 256


INDEXES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("not JSON", lambda v: "{", "not JSON"),
    ("a list", lambda v: [], "not an index"),
    ("version", lambda v: {**v, "version": 2}, "version 2; expected 1"),
    ("type", lambda v: {**v, "type": "float64"}, "not an index"),
    (
        "outside",
        lambda v: {**v, "shards": [{**v["shards"][0], "file": "../../etc/passwd"}]},
        "shard '../../etc/passwd'",
    ),
    ("absolute", lambda v: {**v, "shards": [{**v["shards"][0], "file": "/dev/zero"}]}, "shard '/dev/zero'"),
    ("gone", lambda v: {**v, "shards": [{**v["shards"][0], "file": "99999.bin"}]}, "no such file"),
    (
        "too many tokens",
        lambda v: {**v, "shards": [{**v["shards"][0], "tokens": 10**12}]},
        "the index says 20000000000",
    ),
    ("negative", lambda v: {**v, "shards": [{**v["shards"][0], "tokens": -5}]}, "bytes; the index says -10"),
    ("text of tokens", lambda v: {**v, "shards": [{**v["shards"][0], "tokens": "5"}]}, "expected 00000.bin"),
    ("other sum", lambda v: {**v, "tokens": 7}, "7 tokens; expected as many as its shards hold"),
    ("documents", lambda v: {**v, "documents": 10**9}, "documents.bin: 16 bytes; the index says 8000000000"),
    ("tokenizer", lambda v: {**v, "tokenizer": "pickle", "vocabulary": ["x"]}, "unknown tokenizer 'pickle'"),
    ("no end", lambda v: {**v, "tokenizer": "char", "vocabulary": ["x"]}, "a tokenizer of 1 tokens"),
    ("missing", lambda v: {k: v[k] for k in v if k != "shards"}, "KeyError: 'shards'"),
    ("missing file", lambda v: {**v, "tokenizer": "bpe"}, "tokenizer.json: no such file"),
]


@pytest.mark.parametrize(("change", "said"), [case[1:] for case in INDEXES], ids=[case[0] for case in INDEXES])
def test_a_hostile_index_is_refused(change: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path) -> None:
    folder = shards(tmp_path)
    values = change(json.loads((folder / "index.json").read_text()))
    (folder / "index.json").write_text(values if isinstance(values, str) else json.dumps(values))
    refused(lambda: data.get("token_shards")(tmp_path, path=str(folder)), said)


def shards(folder: Path) -> Path:
    with ShardWriter(folder / "shards", TextSpec("byte", (), 8), 1000) as writer:
        writer.add(bytes(range(100)) * 2 + b"\0\1", [50, 101], 200)
        writer.finish({})
    return folder / "shards"


def test_a_flipped_bit_in_a_shard_is_seen_by_its_checksum_and_no_id_leads_outside(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    raw = bytearray((folder / "00000.bin").read_bytes())
    raw[41] ^= 0x40
    (folder / "00000.bin").write_bytes(raw)
    assert read_index(folder, 8).damaged_files() == ["00000.bin"]
    source = data.get("token_shards")(tmp_path, path=str(folder), context=8).load["train"]()
    refused(lambda: source.gather(torch.arange(len(source))), "00000.bin: token")
    (folder / "00000.bin").unlink()
    (folder / "00000.bin").symlink_to("/dev/zero")
    refused(lambda: read_index(folder, 8), "no such file")


PIECES = [b'"', b"{", b"}", b"[", b"]", b":", b",", b"\\", b"\\u", b"\\ud800", b"NaN", b"null", b"1e999", b"\xff",
          b"\0", b"\xef\xbb\xbf", b"\r", b"\n", b"-", b"<|user|>", b'"role"', b"Infinity", b"9" * 30]  # fmt: skip


def mutated(rng: random.Random, raw: bytes) -> bytes:
    made = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, kind = rng.randrange(len(made) + 1), rng.randrange(4)
        if kind == 0 and made:
            made[at % len(made)] = rng.randrange(256) if rng.random() < 0.3 else rng.randrange(32, 127)
        elif kind == 1:
            made[at:at] = rng.choice(PIECES)
        elif kind == 2:
            del made[at : at + rng.randint(1, 20)]
        else:
            made[at:at] = made[rng.randrange(len(made) + 1) :][: rng.randint(1, 40)]
    return bytes(made)


def test_mutated_lines_end_in_data_or_in_one_line(tmp_path: Path) -> None:
    rng, file, outcomes = random.Random(23), tmp_path / "a.jsonl", {"data": 0, "refused": 0}
    long = b'"' + b"text that may be bent " * 10 + b'"'
    for i in range(3000 if figures.SOAK else 300):
        source = list(GOOD)[i % 3]
        file.write_bytes(mutated(rng, GOOD[source].replace(b'"a"', long).replace(b'"one"', long)))
        try:
            data.get(source)(tmp_path, path=str(file)).load["train"]()
            outcomes["data"] += 1
        except InputError as error:
            assert len(error.line) <= 200 and error.line.isprintable()
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes
    figures.record("mutated JSON lines", sum(outcomes.values()), 0, f"{outcomes['refused']} refused in one line")


TABLES = {
    "labelled_file": b'text,label,split\n"a, fine film",yes,train\ndull,no,train\nso,yes,val\nlong,no,test\n',
    "parallel_file": b"source\ttarget\na b\tB A\nc d e\tE D C\nf\tF\n",
}


def test_mutated_tables_end_in_data_or_in_one_line(tmp_path: Path) -> None:
    rng, outcomes = random.Random(31), {"data": 0, "refused": 0}
    for i in range(3000 if figures.SOAK else 200):
        source = list(TABLES)[i % 2]
        file = tmp_path / ("a.csv" if source == "labelled_file" else "a.tsv")
        file.write_bytes(mutated(rng, TABLES[source]))
        try:
            bundle = data.get(source)(tmp_path, path=str(file), tokenizer="word")
            train = bundle.load["train"]()
            train.gather(torch.arange(len(train)))
            outcomes["data"] += 1
        except InputError as error:
            assert len(error.line) <= 200 and error.line.isprintable(), error.line
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes
    figures.record("mutated tables of text", sum(outcomes.values()), 0, f"{outcomes['refused']} refused in one line")


def test_mutated_tokenizers_end_in_a_tokenizer_or_in_one_line() -> None:
    rng, raw, outcomes = random.Random(29), json.dumps(valid()).encode(), {"taken": 0, "refused": 0}
    for _ in range(2000 if figures.SOAK else 150):
        text = mutated(rng, raw).decode("utf-8", "replace")
        try:
            known = tokenizer(TextSpec("bpe", (text,), 8))
            known.decode(known.encode("a text, naïve \u2028 <end> 123"))
            outcomes["taken"] += 1
        except InputError as error:
            assert len(error.line) <= 200 and error.line.isprintable()
            outcomes["refused"] += 1
    assert outcomes["refused"] > 20, outcomes
    figures.record("mutated tokenizers", sum(outcomes.values()), 0, f"{outcomes['refused']} refused in one line")
