"""Run folders that a stranger made, or that a clock, a copy or a kill left behind: nothing whole is lost, nothing
outside the folder is touched, and what is passed over is kept and named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import pytest
from PIL import Image

from bigmodel_cli.commands.evaluation.membership import folder_of
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.session.run_folder import RunFolder
from bigmodel_cli.engine.session.session import train

KEPT = "somebody's file\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A recipe, and a finished run of it."""
    values = {"model": {"name": "perceptron"}, "data": {"name": "digits"}, "train": {"epochs": 1}}
    recipe, folder = resolve([Layer("test", values)]).recipe, tmp_path_factory.mktemp("run") / "run"
    train(recipe, RunFolder(folder), lambda event: None)
    return recipe, folder


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def resumed(recipe: Any, folder: Path) -> list[str]:
    notes: list[str] = []
    train(recipe, RunFolder(folder, resume=True), lambda event: notes.extend(event.get("notes", ())))
    return notes


def test_a_later_checkpoint_survives_a_clock_that_was_set_back(finished: tuple[Any, Path], tmp_path: Path) -> None:
    recipe, source = finished
    folder = copy(source, tmp_path / "run")
    later = checkpoint.load(folder / "last.pt")
    step = later["progress"]["step"]
    later["meta"]["created"] -= 3600
    checkpoint.save(folder / "last.pt", later)
    earlier = checkpoint.load(folder / "best.pt")
    earlier["progress"] |= {"step": step - 5, "epoch": 0, "best_epoch": 0}
    checkpoint.save(folder / "best.pt", earlier)
    os.utime(folder / "last.pt", (1, 1))
    assert not [note for note in resumed(recipe, folder) if "skipped" in note]
    assert checkpoint.load(folder / "last.pt")["progress"]["step"] == step


def test_what_a_resume_passes_over_is_kept_and_named(finished: tuple[Any, Path], tmp_path: Path) -> None:
    recipe, source = finished
    folder = copy(source, tmp_path / "run")
    damaged = (folder / "last.pt").read_bytes()[:-50]
    (folder / "last.pt").unlink()  # it is a hard link to best.pt
    (folder / "last.pt").write_bytes(damaged)
    (note,) = [note for note in resumed(recipe, folder) if "skipped" in note]
    assert "last.pt" in note and "kept as last.pt.skipped-1" in note
    assert (folder / "last.pt.skipped-1").read_bytes() == damaged
    assert checkpoint.load(folder / "last.pt")["progress"] == checkpoint.load(folder / "best.pt")["progress"]


def test_a_dangling_last_is_passed_over(finished: tuple[Any, Path], tmp_path: Path) -> None:
    """A sharded last.pt is a link, and its folder may not have been copied with it."""
    recipe, source = finished
    folder = copy(source, tmp_path / "run")
    (folder / "last.pt").unlink()
    (folder / "last.pt").symlink_to("parts-gone")
    (note,) = [note for note in resumed(recipe, folder) if "skipped" in note]
    assert "last.pt" in note and (folder / "last.pt").is_file() and not (folder / "last.pt").is_symlink()


WRITTEN = ["run.lock", "metrics.jsonl", "metrics.csv", "last.pt", ".report.html.tmp"]
WRITTEN += ["status.json", "recipe.yaml", "report.html", "crash.log", "best.pt"] if figures.SOAK else []


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("how", ["--resume", "--overwrite"] if figures.SOAK else ["--resume"])
def test_no_link_in_a_run_folder_is_written_through(
    how: str, name: str, finished: tuple[Any, Path], run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    folder, victim = copy(finished[1], tmp_path / "run"), tmp_path / "victim"
    victim.write_text(KEPT)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim)
    model = [] if how == "--resume" else ["perceptron"]
    done = run_cli("train", *model, "--data", "digits", "--epochs", 2, "--out", folder, how, "--log", "csv")
    assert victim.read_text() == KEPT
    assert done.returncode in (0, 2, 3) and "a bug" not in done.stderr, done.stderr


def test_no_page_or_picture_is_written_through_a_link(
    finished: tuple[Any, Path], run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    folder, victim = copy(finished[1], tmp_path / "run"), tmp_path / "victim"
    victim.write_text(KEPT)
    Image.new("L", (8, 8), 99).save(tmp_path / "a.png")
    (tmp_path / "why").mkdir()
    links = [tmp_path / "why/0000-a.png", tmp_path / "why/index.html", folder / "eval-val.html"]
    for link in links:
        link.symlink_to(victim)
    done = run_cli("explain", "run", "a.png", "--no-checks", "--out", "why")
    assert done.returncode == 0, done.stderr
    done = run_cli("eval", "run")
    assert done.returncode == 0, done.stderr
    assert victim.read_text() == KEPT
    assert [link.name for link in links if link.is_symlink() or KEPT.encode() in link.read_bytes()] == []
    (folder / "membership").symlink_to(tmp_path)
    with pytest.raises(InputError, match="membership: is a link"):
        folder_of(folder / "last.pt")


SEARCH = """
model: {name: perceptron}
data: {name: digits}
train: {max_steps: 1}
search: {optimizer.lr: [0.1, 0.2]}
"""


def test_a_search_in_a_strangers_folder(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    """Optuna appends to its log, whatever lies under that name."""
    pytest.importorskip("optuna")
    (tmp_path / "search.yaml").write_text(SEARCH)
    victim, log = tmp_path / "victim", tmp_path / "tuned/trials.log"
    log.parent.mkdir()
    victim.write_text(KEPT)
    tune = ("tune", "search.yaml", "--trials", 1, "--out", "tuned")
    log.symlink_to(victim)
    done = run_cli(*tune)
    assert done.returncode == 3 and "trials.log is a link" in done.stderr, done.stderr
    assert victim.read_text() == KEPT
    log.unlink()
    for damaged in ('{"op_code": 0}', '{"op_code": 99, "worker_id": "x"}', "[]", '{"op_code": []}'):
        log.write_text(damaged + "\n")
        done = run_cli(*tune)
        assert done.returncode == 2 and "trials.log: damaged" in done.stderr, (damaged, done.stderr)


def test_the_victim_is_noticed(tmp_path: Path) -> None:
    """Negative control: an ordinary open follows the link."""
    (tmp_path / "victim").write_text(KEPT)
    (tmp_path / "metrics.jsonl").symlink_to("victim")
    with pytest.raises(OSError, match="is a link"):
        atomic_files.open_own(tmp_path / "metrics.jsonl")
    assert (tmp_path / "victim").read_text() == KEPT
    (tmp_path / "metrics.jsonl").open("w").close()
    assert (tmp_path / "victim").read_text() == ""


def test_a_pipe_for_a_log_stops_nobody(run_cli: Callable[..., Any], finished: tuple[Any, Path], tmp_path: Path) -> None:
    """Opening a pipe waits for its other end, which never comes."""
    folder = copy(finished[1], tmp_path / "run")
    for name in ("metrics.jsonl", "run.lock"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        done = run_cli("train", "--resume", "--out", folder, timeout=60)
        assert done.returncode in (2, 3) and "not a regular file" in done.stderr, done.stderr
        (folder / name).unlink()


def test_files_follow_the_umask(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    done = run_cli("train", "perceptron", "--data", "digits", "--epochs", 1, "--out", "run", fresh=True, umask=0o027)
    assert done.returncode == 0, done.stderr
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "run").iterdir()}
    assert set(modes.values()) == {"0o640"}, modes
