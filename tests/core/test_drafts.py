"""Drafts name the process that writes them: what a dead one left goes, what lives or may live stays, and is named."""

from __future__ import annotations

import ast
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import environment

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.files import atomic_files, drafts, scratch
from bigmodel_cli.core.files.owners import TOKEN, Owner, current_owner
from bigmodel_cli.core.processes.process_start import process_start

PACKAGE = Path(atomic_files.__file__).parents[2]
HERE = current_owner()
OWNERS = {
    "gone": dataclasses.replace(HERE, started=HERE.started + 1),  # another process had this number
    "alive": HERE,
    "another host": dataclasses.replace(HERE, host="0" * 8),
    "another container": dataclasses.replace(HERE, space=7),
}


def write(path: Path, text: str = "new") -> None:
    atomic_files.write_text(path, text)


def left(folder: Path, name: str = "out.json") -> dict[str, Path]:
    """A draft of the file `name` by each owner."""
    found = {who: folder / f".{name}.{owner.token}-0123abcd.tmp" for who, owner in OWNERS.items()}
    for path in found.values():
        path.write_text("half")
    return found


def test_a_draft_names_its_process(tmp_path: Path) -> None:
    """Its host, boot, PID namespace, number and start; of a name too long for a draft its beginning."""
    for name in ("a.pt", "x" * 250):
        path = atomic_files.temporary_name(tmp_path / name)
        match = atomic_files.TEMPORARY.fullmatch(path.name)
        assert match is not None and Owner.parse(match[2]) == HERE and drafts.is_temporary(path)
        write(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt", "x" * 250}
    assert len({atomic_files.temporary_name(tmp_path / "a.pt") for _ in range(9)}) == 9  # nobody can guess the next
    with drafts.draft(tmp_path / "out") as folder:
        assert Owner.parse(folder.name.split(".")[2]) == HERE and drafts.is_temporary(folder)
    assert not folder.exists()


def test_writing_a_file_removes_what_dead_processes_left_of_it(tmp_path: Path) -> None:
    found, others = left(tmp_path), left(tmp_path, "mine.json")
    (tmp_path / ".out.json.12-0123abcd.tmp").touch()  # of an earlier version: a number alone says nothing
    write(tmp_path / "out.json")
    assert [who for who, path in found.items() if not path.exists()] == ["gone"]
    assert all(path.exists() for path in others.values())
    assert (tmp_path / ".out.json.12-0123abcd.tmp").exists() and (tmp_path / "out.json").read_text() == "new"


def owner_note(path: Path) -> str:
    return f"{path} stays: a process of another host, container or user may be writing it"


@pytest.mark.parametrize("alone", [False, True])
def test_a_folder_is_cleared_of_drafts(alone: bool, tmp_path: Path) -> None:
    """With its lock also of those that another host or container left: no run of theirs is at work there."""
    found = left(tmp_path)
    earlier = tmp_path / ".out.json.12.tmp"  # of an earlier version
    earlier.touch()
    (tmp_path / ".notes.tmp").touch()
    notes = atomic_files.remove_temporary_files(tmp_path, alone=alone)
    kept = {who for who, path in found.items() if path.exists()}
    assert kept == ({"alive"} if alone else {"alive", "another host", "another container"})
    named = [] if alone else [found["another host"], found["another container"]]
    assert sorted(notes) == sorted(owner_note(path) for path in named)
    assert (tmp_path / ".notes.tmp").exists() and not earlier.exists()


def test_what_another_user_left_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their process is gone, but a file of theirs is not ours to remove."""
    file, folder = left(tmp_path)["gone"], tmp_path / f".out.{OWNERS['gone'].token}.new"
    folder.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
        write(tmp_path / "out.json")
        assert owner_note(file) in atomic_files.remove_temporary_files(tmp_path)
        assert owner_note(folder) in drafts.remove_leftovers(tmp_path, lambda path: True)
        assert file.exists() and folder.exists()
    write(tmp_path / "out.json")  # negative control: our own go
    drafts.remove_leftovers(tmp_path, lambda path: True)
    assert not file.exists() and not folder.exists()


def test_a_process_that_is_hidden_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where /proc shows only one's own processes (``hidepid``), another user's has a number and no start."""
    gone = left(tmp_path)["gone"]
    real = Path.read_text

    def hidden(path: Path, *given: object, **options: object) -> str:
        if path.name == "stat" and path.parent.name == str(HERE.pid):
            raise FileNotFoundError(path)
        return real(path, *given, **options)  # type: ignore[arg-type]

    def another_users(pid: int, number: int) -> None:
        raise PermissionError(pid)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", hidden)
        patched.setattr(os, "kill", another_users)
        assert not HERE.is_gone() and not OWNERS["gone"].is_gone()
        write(tmp_path / "out.json")
        assert gone.exists()
    write(tmp_path / "out.json")  # negative control: seen, it is known to be another one
    assert not gone.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from bigmodel_cli.core.files import atomic_files
atomic_files.replace(Path("out.json"), lambda draft: (draft.write_text("half"), os.kill(os.getpid(), signal.SIGKILL)),
                     lambda: 4)
"""


def test_what_a_killed_process_left_is_gone_after_the_next_write(tmp_path: Path) -> None:
    write(tmp_path / "out.json", "old")
    for _ in range(2):
        done = subprocess.run([sys.executable, "-P", "-c", KILLED], cwd=tmp_path, env=environment())
        assert done.returncode == -signal.SIGKILL and (tmp_path / "out.json").read_text() == "old"
        (draft,) = tmp_path.glob(".*.tmp")  # the second has removed the first one's
        assert draft.read_text() == "half"
    write(tmp_path / "out.json")
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_full_disk_and_a_wrong_place_are_told_apart(tmp_path: Path) -> None:
    def full(draft: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(MachineError, match="No space left on device; about 7 bytes needed"):
        atomic_files.replace(tmp_path / "a", full, lambda: 7)
    with pytest.raises(MachineError) as nowhere:
        write(tmp_path / "nowhere" / "a")
    assert "No such file or directory" in nowhere.value.line and "bytes" not in nowhere.value.line
    assert not list(tmp_path.iterdir())


def test_a_zombie_owns_nothing() -> None:
    """A process that has ended is still listed where nobody asks for its exit code, as in a container."""
    read, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(read, 1)
        os._exit(0)
    owner = dataclasses.replace(HERE, pid=pid, started=process_start(pid) or -1)
    assert not owner.is_gone()  # the control
    os.write(write_end, b"x")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert owner.is_gone() and Path(f"/proc/{pid}").exists()
    os.waitpid(pid, 0)


def test_a_scratch_folder_removes_those_of_killed_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch.remove_leftovers.cache_clear()
    found = {who: tmp_path / f"bigmodel-{owner.token}-abc12_x9" for who, owner in OWNERS.items()}
    (elsewhere := tmp_path / "elsewhere").mkdir()
    strange = [tmp_path / "bigmodel-mine", tmp_path / f"bigmodel-{OWNERS['gone'].token}"]
    for path in (*found.values(), *strange):
        path.mkdir()
        (path / "half.onnx").touch()
    link = tmp_path / f"bigmodel-{OWNERS['gone'].token}-link"
    link.symlink_to(elsewhere)
    with scratch.scratch_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700 and folder.parent == tmp_path
        assert scratch.LEFT.fullmatch(folder.name)
    assert [who for who, path in found.items() if not path.exists()] == ["gone"] and not folder.exists()
    assert link.is_symlink() and elsewhere.exists() and all(path.exists() for path in strange)
    found["gone"].mkdir()
    scratch.remove_leftovers(tmp_path, 12345)
    assert found["gone"].exists()  # another user's
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(MachineError, match="No such file or directory"), scratch.scratch_folder():
        raise AssertionError


def test_a_killed_process_leaves_its_scratch_folder_to_the_next(tmp_path: Path) -> None:
    die = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    program = "from bigmodel_cli.core.files.scratch import scratch_folder\nwith scratch_folder() as f:\n    {}"
    for then, left in ((die, 1), (die, 1), ("pass", 0)):
        command = [sys.executable, "-c", program.format(then)]
        subprocess.run(command, env={**environment(), "TMPDIR": str(tmp_path)}, check=False)
        assert len(list(tmp_path.iterdir())) == left


MAKERS = {"mkstemp", "mkdtemp", "mktemp", "NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory"}
LOCK = ("data/image/decode_cache.py", "`.{path.stem}.tmp` is a lock")


def made_elsewhere(name: str, source: str) -> Iterator[str]:
    """The places in `source` that give a draft a name of their own."""
    for node in ast.walk(ast.parse(source)):
        place = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name)):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if called in MAKERS:
                yield f"{place}: {called}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith((".tmp", ".part")):
            yield f"{place}: {node.value}"


def test_no_other_place_names_drafts() -> None:
    found = [
        place
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != Path(atomic_files.__file__).parent
        for place in made_elsewhere(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert [place for place in found if not place.startswith(LOCK[0])] == []
    assert {place.rpartition(": ")[2] for place in found} == {".tmp"}, LOCK[1]
    bad = 'tempfile.mkstemp(dir=folder)\nTemporaryDirectory(dir=folder)\nPath(f".{name}.tmp")\nTemporaryDirectory()\n'
    assert [place.partition(":")[2] for place in made_elsewhere("", bad)] == [
        "1: mkstemp", "2: TemporaryDirectory", "4: TemporaryDirectory", "3: .tmp"]  # fmt: skip  # negative control


def test_the_pattern_of_an_owner_is_that_of_its_token() -> None:
    assert all(Owner.parse(owner.token) == owner for owner in OWNERS.values())
    assert Owner.parse("12") is None and Owner.parse(HERE.token + "-1") is None and TOKEN in drafts.LEFT.pattern
