"""Checkpoints that are damaged, cut, hostile or foreign: refused in one line, never silently different."""

from __future__ import annotations

import os
import pickle
import random
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import figures
import pytest
import torch

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.engine.checkpoint import checkpoint

SOAK = figures.SOAK
DAMAGE = {
    "flip": "checkpoint with one bit flipped",
    "zero": "checkpoint with a range zeroed",
    "cut": "checkpoint cut off",
}


def state(seed: int = 0, size: int = 2000) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "a.weight": torch.randn(size, generator=generator),
        "half": torch.randn(8, generator=generator).bfloat16(),
    }
    meta: dict[str, Any] = {
        "arch": "mlp", "arch_args": {}, "task": "image_classification", "classes": ["a"], "input": {}, "data": {},
        "recipe": {}, "env": {}, "created": 1.0,
    }  # fmt: skip
    return {
        "format": "bigmodel.checkpoint", "version": 1, "model": tensors, "model_ema": None,
        "optimizer": {"state": {0: 1}},
        "scheduler": None, "scaler": None, "progress": {"step": 3}, "rng": {"cpu": torch.arange(9)}, "meta": meta,
    }  # fmt: skip


@pytest.fixture
def good(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "good.pt", state())
    return tmp_path / "good.pt"


def damaged(raw: bytes, rng: random.Random, kind: str) -> bytes:
    at = rng.randrange(len(raw))
    if kind == "flip":
        return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
    if kind == "zero":
        length = rng.randint(1, 400)
        return raw[:at] + bytes(len(raw[at : at + length])) + raw[at + length :]
    return raw[:at]


def silently_different(good: Path, kind: str, count: int) -> int:
    """How many of `count` damaged files load as something else; any error but InputError is a traceback."""
    truth, raw, rng, different = checkpoint.load(good), good.read_bytes(), random.Random(kind), 0
    expected = checkpoint.digest(truth)
    for _ in range(count):
        bad = good.with_name("bad.pt")
        bad.write_bytes(damaged(raw, rng, kind))
        try:
            different += checkpoint.digest(checkpoint.load(bad)) != expected
        except InputError as error:
            assert len(error.line) <= 200 and "weights_only" not in error.line
    return different


@pytest.mark.parametrize(("kind", "quick", "full"), [("flip", 300, 3000), ("zero", 100, 1000), ("cut", 100, 1500)])
def test_damage_is_never_silent(kind: str, quick: int, full: int, good: Path) -> None:
    tried = full if SOAK else quick
    lost = silently_different(good, kind, tried)
    figures.record(DAMAGE[kind], tried, lost, "loaded as something else; the others were refused in one line")
    assert lost == 0


def test_negative_control_without_the_checks(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness sees silent damage when the checksum and the digest are not looked at."""
    monkeypatch.setattr(checkpoint, "_check_sums", lambda path, file: None)
    real = checkpoint.digest
    monkeypatch.setattr(checkpoint, "digest", lambda value: "same")
    checkpoint.save(good, state())
    raw = good.read_bytes()
    rng, different = random.Random(3), 0
    clean = real(checkpoint.load(good))
    for _ in range(200):
        good.write_bytes(damaged(raw, rng, "flip"))
        try:
            different += real(checkpoint.load(good)) != clean
        except InputError:
            continue
    figures.record("checkpoint with one bit flipped: no checksum, no digest", 200, different, control=True)
    assert different > 20


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


@pytest.mark.parametrize("place", ["model", "meta", "top"])
def test_a_strangers_code_never_runs(place: str, tmp_path: Path) -> None:
    canary, file = tmp_path / "canary", tmp_path / "evil.pt"
    content: Any = state()
    if place == "top":
        content = Bomb(canary)
    else:
        content[place]["x"] = Bomb(canary)
    torch.save(content, file)
    with pytest.raises(InputError) as caught:
        checkpoint.load(file)
    assert not canary.exists() and "weights_only" not in caught.value.line
    file.write_bytes(pickle.dumps(Bomb(canary)))  # the format before zip files
    with pytest.raises(InputError):
        checkpoint.load(file)
    assert not canary.exists()
    # The canary works: an unsafe load would have created it.
    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists()


def test_compressed_and_doubled_entries_are_refused(good: Path) -> None:
    with zipfile.ZipFile(good) as archive:
        entries = {i.filename: archive.read(i) for i in archive.infolist()}
    for how, kind in (("compressed", zipfile.ZIP_DEFLATED), ("duplicate entries", zipfile.ZIP_STORED)):
        with warnings.catch_warnings(), zipfile.ZipFile(good, "w", kind) as archive:
            warnings.simplefilter("ignore")  # zipfile warns of the doubled names that are made on purpose
            for name, content in entries.items():
                archive.writestr(name, content)
                if kind == zipfile.ZIP_STORED:
                    archive.writestr(name, content)
        with pytest.raises(InputError, match=how):
            checkpoint.load(good)


@pytest.mark.parametrize("key", list(checkpoint.SCHEMA))
def test_every_missing_field_is_named(key: str, tmp_path: Path) -> None:
    content = {**state(), "integrity": {"algo": "sha256", "digest": ""}}
    del content[key]
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=key if key != "format" else "not a bigmodel checkpoint"):
        checkpoint.load(tmp_path / "x.pt")


def test_newer_folders_pipes_and_plain_values(tmp_path: Path, good: Path) -> None:
    torch.save({**state(), "version": 99}, tmp_path / "new.pt")
    with pytest.raises(InputError, match="made by a newer bigmodel"):
        checkpoint.load(tmp_path / "new.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path, tmp_path / "pipe.pt", Path("/dev/zero")):
        with pytest.raises(InputError, match="not a regular file"):
            checkpoint.load(path)
    with pytest.raises(TypeError, match=r"state\.meta\.when"):
        checkpoint.save(good, {**state(), "meta": {"when": struct}})
    assert checkpoint.load(good)["progress"] == {"step": 3}


def test_resume_takes_the_newest_valid_one(tmp_path: Path) -> None:
    for i, name in enumerate(("best.pt", "last.pt")):
        checkpoint.save(tmp_path / name, {**state(), "progress": {"step": i}})
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:-50])
    path, found, skipped = checkpoint.newest_valid(tmp_path)
    assert path.name == "best.pt" and found["progress"]["step"] == 0 and "last.pt" in skipped[0][1]
    (tmp_path / "best.pt").write_bytes(b"")
    with pytest.raises(InputError, match="no valid checkpoint"):
        checkpoint.newest_valid(tmp_path)


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """RLIMIT_FSIZE in a process of its own, forked from one that has torch loaded, stands for the full disk."""
    import json
    import subprocess
    import sys

    limits = [0, 100, 5_000, 100_000, 1_000_000]
    for limit in limits:
        (tmp_path / str(limit)).mkdir()
        checkpoint.save(tmp_path / str(limit) / "last.pt", state())
    program = f"""
import json, os, resource, signal, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from pathlib import Path
from test_checkpoint_files import checkpoint, state
from bigmodel_cli.core.errors import MachineError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
big = state(1, 500_000)
for limit in {limits}:
    if os.fork():
        os.wait()
        continue
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        checkpoint.save(Path({str(tmp_path)!r}) / str(limit) / "last.pt", big)
    except MachineError as error:
        print(json.dumps([limit, error.exit_code, error.line]), flush=True)
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    answers = {limit: (code, line) for limit, code, line in map(json.loads, done.stdout.splitlines())}
    assert list(answers) == limits, done.stderr
    for limit, (code, line) in answers.items():
        folder = tmp_path / str(limit)
        assert code == MachineError.exit_code and "last.pt" in line and "bytes needed" in line
        assert checkpoint.digest(checkpoint.load(folder / "last.pt")["model"]) == checkpoint.digest(state()["model"])
        assert [p.name for p in folder.iterdir()] == ["last.pt"]
