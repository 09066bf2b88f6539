"""Every reader is bounded before it works: peak memory of at most 64 MB + 20 times the file, and 2 CPU seconds a MB.

Each file is small and well-formed, and made to grow. It is read in a process of its own, which measures itself: the
growth of its peak over an idle one, and its processor time, which other processes do not change.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import pytest
from conftest import environment
from hostile import archive, text

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import open_regular, read_regular
from bigmodel_cli.export.folder import read_folder

BYTES, TIMES = 64 << 20, 20
SECONDS, SECONDS_PER_MB = 2.0, 2.0  # the first: what a process needs for any file
READER = """
import json, os, resource, sys, time
from pathlib import Path
from bigmodel_cli.commands.checkpoint import describe
from bigmodel_cli.core.errors import BigmodelError
from bigmodel_cli.core.strict_yaml import read_yaml
from bigmodel_cli.core.readers.text_files import read_text
from bigmodel_cli.core.tokenizers.tokens import BPETokenizer
from bigmodel_cli.data.user_data.image_table import from_table
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.checkpoint.inspect import inspect_file
from bigmodel_cli.export.folder import read_folder
import tokenizers

def slow(path):
    until = time.process_time() + 2.2
    while time.process_time() < until:
        pass

WAYS = {
    "checkpoint": [lambda p: describe(inspect_file(p)), checkpoint.read],
    "sharded": [lambda p: checkpoint.load(p.parent)],
    "recipe": [read_yaml],
    "text": [lambda p: read_text(p, "auto")],
    "export": [lambda p: read_folder(p.parent)],
    "table": [lambda p: from_table(p)],
    "tokenizer": [lambda p: BPETokenizer(p.read_text()).decode([0] * 1000)],
    "unbounded": [lambda p: json.loads(p.read_text())],
    "slow": [slow],
}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

def measure(kind, path):
    before, begun, answers = peak(), time.process_time(), []
    for way in WAYS[kind]:
        try:
            way(path)
            answers.append(None)
        except BigmodelError as error:
            answers.append([error.exit_code, error.line])
    return {"peak": peak() - before, "seconds": time.process_time() - begun, "answers": answers}

for name, kind, path in json.load(sys.stdin):
    if os.fork() == 0:  # its peak starts at what it has now
        try:
            answer = measure(kind, Path(path))
        except BaseException as error:
            answer = {"raised": repr(error)[:300]}
        print(json.dumps({"name": name, **answer}), flush=True)
        os._exit(0)
    os.wait()
"""


def safetensors(path: Path, header: str) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())


def tokenizer(path: Path, **values: object) -> None:
    vocab = {"a": 0, "b": 1}
    path.write_text(json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": []}, **values}))


def sharing(key: int, rows: int, times: int) -> bytes:
    """A list of `rows` values that another list holds `times` times, below a key of `key` characters."""
    inner = b"]q\x02(" + b"N" * rows + b"e"
    return b"\x80\x02}q\x00(" + text("a") + inner + text("k" * key) + b"]q\x03(" + b"h\x02" * times + b"eu."


EMPTY_TENSOR = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
GROWS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "long paths to a shared list": ("checkpoint", "x.pt", lambda p: archive(p, sharing(30_000, 1000, 1900))),
    "a shared list": ("checkpoint", "x.pt", lambda p: archive(p, sharing(1, 1000, 1900))),
    "empty dictionaries": ("checkpoint", "x.pt", lambda p: archive(p, b"\x80\x02](" + b"}" * 1_900_000 + b"e.")),
    "a million None": ("checkpoint", "x.pt", lambda p: archive(p, b"\x80\x02](" + b"N" * 1_000_000 + b"e.")),
    "marks": ("checkpoint", "x.pt", lambda p: archive(p, b"\x80\x02" + b"(" * 1_900_000 + b"e.")),
    "tuples": ("checkpoint", "x.pt", lambda p: archive(p, b"\x80\x02](" + b"N\x85" * 950_000 + b"e.")),
    "memo": (
        "checkpoint", "x.pt",
        lambda p: archive(p, b"\x80\x02](" + b"".join(b"Nr" + struct.pack("<I", i) for i in range(400_000)) + b"e."),
    ),
    "integer keys": (
        "checkpoint", "x.pt",
        lambda p: archive(p, b"\x80\x02}(" + b"".join(b"J" + struct.pack("<is", i, b"N") for i in range(9**5)) + b"u."),
    ),
    "rank 400,000": (
        "checkpoint", "x.safetensors",
        lambda p: safetensors(p, '{"a":{"dtype":"F32","shape":[' + "1," * 400_000 + '0],"data_offsets":[0,0]}}'),
    ),
    "40,000 tensors": (
        "checkpoint", "x.safetensors",
        lambda p: safetensors(p, "{" + ",".join(f'"{i}":{EMPTY_TENSOR}' for i in range(40_000)) + "}"),
    ),
    "lists in an index": ("sharded", "index.json", lambda p: p.write_text('{"a":[' + "[]," * 900_000 + "[]]}")),
    "objects in an index": ("sharded", "index.json", lambda p: p.write_text('{"a":[' + '{"":0},' * 400_000 + "0]}")),
    "values in a recipe": ("recipe", "x.yaml", lambda p: p.write_text("a: [" + "1," * 130_000 + "1]")),
    "lists in a recipe": ("recipe", "x.yaml", lambda p: p.write_text("a: [" + "[]," * 86_000 + "[]]")),
    "a text of zeros in gzip": ("text", "x.txt.gz", lambda p: p.write_bytes(gzip.compress(bytes(300 << 20), 1))),
    "blank lines of a table": ("table", "x.csv", lambda p: p.write_text("path,label\n" + "\n" * 1_500_000)),
    "labels of an export": ("export", "labels.json", lambda p: export_folder(p, "[" + "[]," * 900_000 + "[]]")),
    "a decoder that lengthens": (
        "tokenizer", "tokenizer.json",
        lambda p: tokenizer(p, decoder={"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 20} for _ in range(6)]}),
    ),
    "a token of a million characters": (
        "tokenizer", "tokenizer.json",
        lambda p: p.write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a" * 10**6: 0}, "merges": []}})),
    ),
}  # fmt: skip


CONTROLS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "unbounded": ("unbounded", "index.json", lambda p: p.write_text('{"a":[' + '{"":0},' * 1_500_000 + "0]}")),
    "slow": ("slow", "x.txt", lambda p: p.write_text("a")),
}


def export_folder(labels: Path, content: str) -> None:
    for name in ("export.json", "preprocess.json", "proof.json"):
        labels.with_name(name).write_text("{}")
    labels.write_text(content)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What reading each file took, and its size."""
    root, files = tmp_path_factory.mktemp("growing"), {}
    for i, (name, (kind, file, make)) in enumerate({**GROWS, **CONTROLS}.items()):
        files[name] = (kind, root / str(i) / file)
        files[name][1].parent.mkdir()
        make(files[name][1])
    given = json.dumps([(name, kind, str(path)) for name, (kind, path) in files.items()])
    command = [sys.executable, "-c", READER]
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=environment(), timeout=280)
    assert done.returncode == 0, done.stderr
    found = {answer["name"]: answer for answer in map(json.loads, done.stdout.splitlines())}
    return {name: {**found[name], "bytes": path.stat().st_size} for name, (_, path) in files.items()}


def within_time(found: dict[str, Any]) -> bool:
    return bool(found["seconds"] <= SECONDS + SECONDS_PER_MB * found["bytes"] / 1e6)


@pytest.mark.parametrize("name", GROWS)
def test_memory_and_time_follow_the_size_of_the_file(name: str, measured: dict[str, Any]) -> None:
    found = measured[name]
    assert "raised" not in found, found
    size = found["bytes"]
    figures.record(f"budget: {name}", 1, 0, f"{found['peak'] / size:.1f} bytes a byte of {size:,}")
    assert found["peak"] <= BYTES + TIMES * size, found
    assert within_time(found), found
    assert all(answer is None or answer[0] == 2 for answer in found["answers"]), found


def test_an_unbounded_reader_is_noticed(measured: dict[str, Any]) -> None:
    """Negative controls: the same measure of json.loads, which has no limit, and of a reader that takes its time."""
    found, slow = measured["unbounded"], measured["slow"]
    assert found["peak"] > BYTES + TIMES * found["bytes"], found
    assert not within_time(slow) and slow["peak"] < BYTES, slow


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe without a writer would wait for ever, and /dev/zero never ends."""
    pipe, endless, large = tmp_path / "pipe", tmp_path / "endless", tmp_path / "large"
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    large.write_bytes(bytes(11))
    for path in (pipe, endless, tmp_path):
        with pytest.raises(InputError, match="not a regular file"):
            open_regular(path)
    assert read_regular(large, 11) == bytes(11)
    with pytest.raises(InputError, match="more than 10 bytes"):
        read_regular(large, 10)


@pytest.mark.parametrize("name", ["export.json", "labels.json", "preprocess.json", "proof.json"])
def test_an_export_with_an_endless_file(name: str, tmp_path: Path) -> None:
    """`/dev/zero` has a size of 0, so a limit on its size is none."""
    export_folder(tmp_path / "labels.json", "[]")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(InputError):
        read_folder(tmp_path)
