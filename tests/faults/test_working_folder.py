"""A working folder full of downloads: no Python file in it is imported, by the command or by any process below it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment

SHADOWS = ["typer", "pickle", "socket", "multiprocessing", "numpy", "torch", "yaml", "bigmodel_cli", "site", "json"]
BIGMODEL = Path(sys.executable).with_name("bigmodel")
COMMANDS = {
    "train, two processes": ["train", "perceptron", "--data", "digits", "--max-steps", "2", "--nproc", "2"],
    "tokenize, two processes": ["data", "tokenize", "t.txt", "--processes", "2", "--out", "shards"],
    "env-check": ["env-check"],
}


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """A folder with a text, and with modules that leave a canary where they are imported."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / ('canary-' + name))!r}, 'w')\n")
    (folder / "t.txt").write_text("hello world\n" * 200)
    return folder


def canaries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.glob("canary-*"))


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_in_the_working_folder_is_imported(name: str, downloads: Path) -> None:
    plain = {k: v for k, v in environment().items() if k != "PYTHONSAFEPATH"} | {"TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run([BIGMODEL, *COMMANDS[name]], cwd=downloads, env=plain, capture_output=True, text=True)
    assert canaries(downloads) == []
    assert done.returncode == 0 or name == "env-check", done.stderr


def test_python_m_does_not_import_it_either(downloads: Path) -> None:
    (downloads / "bigmodel_cli.py").unlink()  # Python itself looks for the module that `-m` names
    (downloads / "site.py").unlink()
    for name in ("json", "socket", "pickle"):  # runpy imports some of the standard library before us
        (downloads / f"{name}.py").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "bigmodel_cli", "--help"], cwd=downloads, capture_output=True, text=True
    )
    assert done.returncode == 0 and canaries(downloads) == [], done.stderr


def test_the_canary_is_made_where_it_is_let(downloads: Path) -> None:
    """Negative control: a plain child imports the module."""
    plain = {k: v for k, v in environment().items() if k != "PYTHONSAFEPATH"}  # commands run in this process set it
    subprocess.run([sys.executable, "-c", "import typer"], cwd=downloads, check=True, env=plain)
    assert canaries(downloads) == ["canary-typer"]


def test_a_working_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    """torch's math library ended the process with a line of its own."""
    (gone := tmp_path / "gone").mkdir()
    script = f'cd "{gone}" && rmdir "{gone}" && exec "{BIGMODEL}" data inspect digits'
    done = subprocess.run(["sh", "-c", script], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        3,
        "error: the working folder no longer exists\nhint: cd to another one\n",
    )
