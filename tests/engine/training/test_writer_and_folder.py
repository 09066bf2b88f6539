"""Saving beside training, and a run's folder under bad conditions."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.core.errors import InputError, InterruptedRun, MachineError
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.strict_yaml import parse_scalar
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.checkpoint.async_writer import Writer, snapshot
from bigmodel_cli.engine.session.run_folder import RunFolder
from bigmodel_cli.engine.session.session import train


def state(step: int) -> dict[str, Any]:
    meta = {"arch": "", "arch_args": {}, "task": "", "classes": [], "input": {}, "data": {}, "recipe": {}, "env": {}}
    return {
        "format": "bigmodel.checkpoint", "version": 1, "model": {"w": torch.full((9,), float(step))},
        "model_ema": None, "optimizer": {}, "scheduler": None, "scaler": None, "progress": {"step": step}, "rng": {},
        "meta": {**meta, "created": float(step)},
    }  # fmt: skip


def test_what_is_saved_is_what_was_then(tmp_path: Path) -> None:
    live = state(1)
    with Writer(tmp_path) as writer:
        writer.save(live, best=False)
        live["model"]["w"].fill_(-1)
        live["progress"]["step"] = -1
    found = checkpoint.load(tmp_path / "last.pt")
    assert found["progress"] == {"step": 1} and found["model"]["w"].eq(1).all()


def test_a_copy_keeps_form_and_sharing() -> None:
    base = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    copy, arrived = snapshot({"a": base, "b": [base.detach(), 3], "c": torch.empty(0)})
    arrived()
    assert torch.equal(copy["a"], base) and copy["a"].stride() == base.stride()
    assert copy["a"].data_ptr() == copy["b"][0].data_ptr() != base.data_ptr()
    held = weakref.ref(copy["a"])
    del copy
    assert held() is None, "a copy of a large table must not wait for the garbage collector"


def test_the_best_is_never_behind(tmp_path: Path) -> None:
    with Writer(tmp_path) as writer:
        writer.save(state(1), best=True)
        writer.save(state(2), best=False)
    assert [checkpoint.load(tmp_path / n)["progress"]["step"] for n in ("best.pt", "last.pt")] == [1, 2]
    assert (tmp_path / "best.pt").stat().st_nlink == 1


def test_short_epochs_do_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a save is written a newer one replaces the one that waits; a best one gives way to a best one alone."""
    gate, written = threading.Event(), []
    write = checkpoint.save

    def slow(path: Path, state: dict[str, Any], abandoned: Any) -> None:
        assert gate.wait(20)
        written.append((path.name, state["progress"]["step"]))
        write(path, state, abandoned)

    monkeypatch.setattr(checkpoint, "save", slow)
    with Writer(tmp_path) as writer:
        for step, best in ((1, False), (2, False), (3, True), (4, True)):
            writer.save(state(step), best)
        threading.Timer(0.2, gate.set).start()
        writer.save(state(5), best=False)  # must not cost the best one that waits: this one blocks
    assert written == [("last.pt", 1), ("best.pt", 4), ("last.pt", 5)]
    assert [checkpoint.load(tmp_path / n)["progress"]["step"] for n in ("best.pt", "last.pt")] == [4, 5]


def test_what_is_frozen_is_not_copied(tmp_path: Path) -> None:
    live = state(1)
    live["model"]["head"] = torch.zeros(3)
    with Writer(tmp_path, {"w", "no longer there"}) as writer:
        copy, _ = writer._snapshot(live)
        writer.save(live, best=False)
        live["model"]["head"].fill_(-1)
    assert copy["model"]["w"] is live["model"]["w"] and copy["model"]["head"] is not live["model"]["head"]
    found = checkpoint.load(tmp_path / "last.pt")["model"]
    assert list(found) == ["w", "head"] and found["w"].eq(1).all() and found["head"].eq(0).all()


def test_an_error_surfaces_before_the_next_save(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "gone")
    writer.save(state(1), best=False)
    with pytest.raises(MachineError, match=r"gone/last\.pt"):
        for step in range(2, 5000):  # the first of these may come before the error does
            writer.save(state(step), best=False)
    with pytest.raises(MachineError), Writer(tmp_path / "gone") as other:  # and at the end
        other.save(state(1), best=False)
    assert not [t for t in threading.enumerate() if t.name == "checkpoint"]


def test_stopped_at_once_leaves_nothing_half(tmp_path: Path) -> None:
    big = {**state(1), "model": {str(i): torch.randn(100_000) for i in range(40)}}
    with pytest.raises(InterruptedRun), Writer(tmp_path) as writer:
        writer.save(big, best=False)
        raise InterruptedRun(2, "interrupted twice")
    assert [p.name for p in tmp_path.iterdir()] in ([], ["last.pt"])


def test_newest_by_its_own_word(tmp_path: Path) -> None:
    """A copied folder keeps no times."""
    for step, name in enumerate(("last.pt", "best.pt")):
        checkpoint.save(tmp_path / name, state(2 - step))
    os.utime(tmp_path / "last.pt", (1, 1))
    assert checkpoint.newest_valid(tmp_path)[0].name == "last.pt"


def test_only_our_own_temporary_files_are_removed(tmp_path: Path) -> None:
    for name in (".last.pt.123.tmp", ".mine.tmp"):
        (tmp_path / name).touch()
    with RunFolder(tmp_path, overwrite=True):
        assert {p.name for p in tmp_path.iterdir()} == {".mine.tmp", "run.lock", "metrics.jsonl"}


def test_a_torn_log_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    good = '{"event": "epoch", "epoch": 1, "step": 5}'
    (tmp_path / "metrics.jsonl").write_bytes(good.encode() + b'\n[1]\n3\n{"event": "epoch"}\n\xff\xfe\0\n{"event": "ep')
    (tmp_path / "last.pt").touch()
    with RunFolder(tmp_path, resume=True) as folder:
        folder.rewind(1)
    assert (tmp_path / "metrics.jsonl").read_text() == good + "\n"


def test_a_runs_that_is_a_file_and_a_name_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").touch()
    with pytest.raises(MachineError, match="runs"), RunFolder(None):
        pass
    assert Path("runs").is_file()
    with pytest.raises(MachineError, match="xxx"), RunFolder(Path("x" * 300)):
        pass


@pytest.mark.parametrize("text", ["9223372036854775808", "-9223372036854775809", "9" * 5000])
def test_numbers_beyond_64_bits(text: str) -> None:
    with pytest.raises(InputError, match="is too large"):
        parse_scalar(text)
    assert parse_scalar("9223372036854775807") == 2**63 - 1


def test_a_save_cut_between_best_and_last_is_ended_by_the_resume(tmp_path: Path) -> None:
    """A kill there leaves last.pt one save behind, which at the end of a run no later save makes good."""
    values = {"model": {"name": "perceptron"}, "data": {"name": "digits"}, "train": {"epochs": 1}}
    recipe = resolve([Layer("test", values)]).recipe
    folder = tmp_path / "run"
    train(recipe, RunFolder(folder, "x"), lambda event: None)
    best = checkpoint.load(folder / "best.pt")
    older = {**best, "progress": {**best["progress"], "epoch": 0, "best_epoch": 0}}
    older["meta"] = {**best["meta"], "created": best["meta"]["created"] - 1}
    checkpoint.save(folder / "last.pt", older)
    train(recipe, RunFolder(folder, "x", resume=True), lambda event: None)
    assert checkpoint.digest(checkpoint.load(folder / "last.pt")) == checkpoint.digest(best)
