"""On a system without fcntl, termios, resource, fork and SIGHUP the same commands do the same work."""

from __future__ import annotations

import ast
import fcntl
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment
from PIL import Image

from bigmodel_cli.core.files.file_lock import try_lock

BEYOND_THE_TEXT = 2**30
COMMANDS = (
    ["--help"],
    ["data", "inspect", "pictures"],
    ["train", "mlp", "--data", "pictures", "--epochs", "1", "--precision", "fp32", "--out", "run", "--log", "csv"],
    ["train", "mlp", "--data", "digits", "--epochs", "1", "--precision", "fp32", "--out", "digits"],
    ["train", "--resume", "--out", "digits", "--epochs", "2"],
    ["predict", "run", "pictures/a/0.png"],
    ["eval", "run"],
    ["export", "run", "--format", "safetensors", "--seconds", "0", "--out", "exported"],
    ["env-check"],
    ["train", "--resume", "--out", "run", "--epochs", "2"],
)
POSIX = {"fcntl", "termios", "resource", "pwd", "grp", "pty", "tty"}
NAMES = re.compile(
    r"\b(os\.(fork|killpg|setsid|get[eu]?uid|preadv|pwrite|sysconf|sched_getaffinity|statvfs|mkfifo|O_NOFOLLOW"
    r"|O_NONBLOCK|O_CLOEXEC|waitpid)|signal\.(SIGHUP|SIGUSR\d|SIGKILL|SIGPIPE|SIGCHLD|pthread_sigmask|sigwaitinfo))\b"
)
GUARDED = {f"core/files/{name}.py" for name in ("offset_files", "file_lock")}
GUARDED |= {f"core/processes/{name}.py" for name in ("host_memory", "cpu_count", "child_tree")}
GUARDED |= {"commands/isolation/supervised.py", "engine/device/ranks.py"}
"""The modules that say what each system has."""


def _pictures(folder: Path) -> None:
    for kind, shade in (("a", 20), ("b", 220)):
        (folder / kind).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8, 8), (shade, shade + i, shade)).save(folder / kind / f"{i}.png")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("windows")
    _pictures(folder / "pictures")
    child = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("windows.py")], text=True, cwd=folder,
        env={**environment(), "TORCHDYNAMO_DISABLE": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    (folder / "run").mkdir()
    lock = (folder / "run" / "run.lock").open("a+")
    assert child.stdin is not None
    *commands, last = (json.dumps(command) + "\n" for command in COMMANDS)
    child.stdin.write("".join(commands))
    child.stdin.flush()
    assert child.stdout is not None
    shown = ""
    while not re.search(r"^\d+ \['env-check'", shown, re.MULTILINE) and (line := child.stdout.readline()):
        shown += line
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, BEYOND_THE_TEXT)  # another run, of the last command's folder
    out, errors = child.communicate(last, timeout=200)
    return folder, subprocess.CompletedProcess([], child.returncode, shown + out, errors)


def test_commands_do_the_same_work(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, child = done
    assert child.returncode == 0, child.stderr
    codes = re.findall(r"^(\d+) \[", child.stdout, re.MULTILINE)
    assert codes == ["0"] * (len(COMMANDS) - 1) + ["3"], child.stdout + child.stderr
    assert "another run is writing here (pid" in child.stderr
    assert json.loads((folder / "digits/status.json").read_text())["state"] == "done"
    epochs = [json.loads(line) for line in (folder / "digits/metrics.jsonl").read_text().splitlines()]
    assert [event["epoch"] for event in epochs if event["event"] == "epoch"] == [1, 2]
    assert b"\r" not in (folder / "run/metrics.csv").read_bytes() + (folder / "run/metrics.jsonl").read_bytes()
    assert (folder / "exported/example.py").exists() and not list(folder.rglob("*.tmp"))


def test_a_lock_is_held_against_another_process_only_while_open(tmp_path: Path) -> None:
    program = "import sys; from bigmodel_cli.core.files.file_lock import try_lock; print(try_lock(open(sys.argv[1])))"
    path = tmp_path / "lock"
    with path.open("w") as held:
        assert try_lock(held)
        asked = [sys.executable, "-c", program, str(path)]
        assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "False\n"
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "True\n"


def test_what_one_system_has_is_asked_for_in_few_modules() -> None:
    package, wrong = ROOT / "bigmodel_cli", []
    for path in package.rglob("*.py"):
        name, text = str(path.relative_to(package)), path.read_text()
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)]
        imported = {alias.name for node in nodes for alias in node.names}
        if name not in GUARDED and (imported & POSIX or NAMES.search(text)):
            wrong.append(name)
    assert not wrong
