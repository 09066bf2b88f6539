"""A stranger's checkpoint: its code never runs, memory stays bounded, and the refusal is one line."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import figures
import pytest
from conftest import environment
from hostile import HOSTILE, SIMPLE, Calls

HERE = Path(__file__).parent
# Every file is opened in every way there is, in one process that says what came of it.
OPENER = """
import json, resource, sys
from pathlib import Path
from bigmodel_cli.commands.checkpoint import describe
from bigmodel_cli.core.errors import BigmodelError
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.checkpoint.inspect import inspect_file
from bigmodel_cli.engine.build.load import load_trained

ways = {"show": lambda p: describe(inspect_file(p)), "read": checkpoint.read, "eval": load_trained,
        "resume": lambda p: checkpoint.newest_valid(p.parent)}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for folder in sorted(Path(sys.argv[1]).iterdir()):
    (path,) = [p for p in folder.iterdir() if p.suffix in (".pt", ".safetensors")]
    answer = {}
    before = peak()
    for name, way in ways.items():
        try:
            way(path)
            answer[name] = None
        except BigmodelError as error:
            answer[name] = [error.exit_code, error.line]
        except BaseException as error:
            answer[name] = [1, f"{type(error).__name__}: {error}"]
    print(json.dumps({"name": folder.name, "grown": peak() - before, **answer}), flush=True)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("hostile")
    for name, make in HOSTILE.items():
        folder = root / name
        (folder / "kept").mkdir(parents=True)
        (folder / "evil.py").write_text(f"open({str(folder / 'canary')!r}, 'w')")
        (folder / "evil.pkl").write_bytes(pickle.dumps(Calls(Path.touch, folder / "canary")))
        make(folder / "x.pt", folder / "canary")
    done = subprocess.run(
        [sys.executable, "-c", OPENER, str(root)], capture_output=True, text=True, timeout=280, env=environment()
    )
    assert done.returncode == 0, done.stderr
    found = {a["name"]: a for a in map(json.loads, done.stdout.splitlines())}
    for name, answer in found.items():
        answer["canary"] = (root / name / "canary").exists()
        answer["kept"] = (root / name / "kept").is_dir()
    return found


def test_there_are_more_than_forty(answers: dict[str, Any]) -> None:
    assert len(HOSTILE) >= 80
    ran = sum(answers[name]["canary"] for name in HOSTILE)
    figures.record("hostile checkpoint", len(HOSTILE), ran, "lost: a canary was created")


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_in_one_line(name: str, answers: dict[str, Any]) -> None:
    answer = answers[name]
    assert not answer["canary"] and answer["kept"]
    assert answer["grown"] < 200, "MB of memory"
    for way in ("read", "eval", "resume"):
        code, line = answer[way]
        assert code in (2, 3), f"{way}: {line}"
        assert len(line) <= 200 and "weights_only" not in line and line.isprintable()
    # What is no more than foreign can be looked at; nothing else may come of it.
    assert answer["show"] is None or answer["show"][0] in (2, 3), answer["show"]


@pytest.mark.parametrize("name", ["os_system", "exec_text", "popen", "touch", "nested_load"])
def test_the_canary_sings_when_it_is_let(name: str, tmp_path: Path) -> None:
    """Negative control: an unsafe load of the same objects creates the file."""
    function, *arguments = SIMPLE[name](tmp_path / "canary")
    result = pickle.loads(pickle.dumps(Calls(function, *arguments), 2))
    if isinstance(result, subprocess.Popen):
        result.wait()
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "arguments",
    [["eval", "x.pt"], ["finetune", "--from", "x.pt"], ["train", "mlp", "--out", ".", "--resume"]],
    ids=lambda a: a[0],
)  # fmt: skip
def test_every_command_refuses(arguments: list[str], run_cli: Any, tmp_path: Path) -> None:
    HOSTILE["os_system"](tmp_path / "x.pt", tmp_path / "canary")
    done = run_cli(*arguments)
    first = done.stderr.splitlines()[0]
    assert done.returncode == 2 and not (tmp_path / "canary").exists(), done.stderr
    assert re.match(r"error: .*x\.pt: refused: it would run posix\.system", first) and len(first) <= 207
    assert "hint: " in done.stderr and "Traceback" not in done.stderr


def test_show_names_what_it_will_not_run(run_cli: Any, tmp_path: Path) -> None:
    HOSTILE["os_system"](tmp_path / "x.pt", tmp_path / "canary")
    done = run_cli("checkpoint", "show", "x.pt")
    assert done.returncode == 0 and re.search(r"never run +posix\.system", done.stdout)
    assert not (tmp_path / "canary").exists()
