"""Kill, stop, hang and cut, at random, every command that writes; then check that nothing whole was lost.

    python tests/faults/chaos.py --minutes 30 --seed 1

After each trial the same command is started again, as a user would, and one invariant is checked:

1. what was whole before is whole now, or was replaced by something whole that is no older, but for what its user gave
   up by ``compress --overwrite`` (docs/reliability.md);
2. the next start works;
3. no file is left that the documents do not name (docs/reliability.md, "Files that a command leaves").
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from nursery import Child, Nursery

from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.core.files import scratch
from bigmodel_cli.data.token_shards.files import read_index
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.export.folder import is_export, read_folder

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
KINDS = ("kill", "stop", "hang", "cut", "twice")
RUN_FILES = (
    r"(recipe\.yaml|metrics\.jsonl|status\.json|(last|best)\.pt(\.skipped-\d+)?"
    r"|report\.html|run\.lock|metrics\.csv)"
)
EXPORT_FILES = r"[^/.][^/]*"
CODES = {0, 2, 3, 4, 129, 130, 138, 143}


@dataclass(frozen=True)
class Command:
    """A command that writes: what it needs, its first start, its next, and the files that it may leave.

    Args:
        setup: commands that make its input, run once.
        first, again: its arguments; `again` goes on after a kill, or repeats a finished one.
        files: a pattern of the paths, below the working folder, that it may leave.
    """

    name: str
    setup: tuple[tuple[str, ...], ...]
    first: tuple[str, ...]
    again: tuple[str, ...]
    files: str
    fresh: tuple[str, ...] = ()
    """Its arguments where `again` finds nothing to go on with."""
    gives_up: str = "$"
    """A pattern of what `again` removes as it begins, since its user said ``--overwrite``."""


SMALL = ("--precision", "fp32", "--batch-size", "64")
START = ("train", "mlp", "--data", "digits", "--max-steps", "6", *SMALL, "--out", "start")
COMMANDS = (
    Command(
        "train", (), ("train", "mlp", "--data", "digits", "--epochs", "4", *SMALL, "--log", "csv", "--out", "run"),
        ("train", "--resume", "--log", "csv", "--out", "run"), rf"run/{RUN_FILES}",
        ("train", "mlp", "--data", "digits", "--epochs", "4", *SMALL, "--log", "csv", "--overwrite", "--out", "run"),
    ),
    Command(
        "finetune", (START,), ("finetune", "--from", "start", "--epochs", "3", "--out", "run"),
        ("finetune", "--resume", "--out", "run"), rf"(run|start)/{RUN_FILES}",
        ("finetune", "--from", "start", "--epochs", "3", "--overwrite", "--out", "run"),
    ),
    Command(
        "study", (), ("study", "study.yaml", "--out", "study"), ("study", "study.yaml", "--out", "study"),
        rf"study/((a|b)/({RUN_FILES}|test\.json)|results\.json)|study\.yaml",
    ),
    Command(
        "tune", (), ("tune", "search.yaml", "--trials", "3", "--out", "tuned"),
        ("tune", "search.yaml", "--trials", "3", "--out", "tuned"),
        r"tuned/(trials\.log(\.lock[\w-]*)?|best\.yaml)|search\.yaml",
    ),
    Command(
        "export", (START,), ("export", "start", "--format", "safetensors", "--seconds", "0", "--out", "out"),
        ("export", "start", "--format", "safetensors", "--seconds", "0", "--overwrite", "--out", "out"),
        rf"out/{EXPORT_FILES}|start/{RUN_FILES}",
    ),
    Command(
        "export onnx", (START,), ("export", "start", "--format", "onnx", "--seconds", "0", "--out", "out"),
        ("export", "start", "--format", "onnx", "--seconds", "0", "--overwrite", "--out", "out"),
        rf"out/{EXPORT_FILES}|start/{RUN_FILES}",
    ),
    Command(
        "compress", (START,), ("compress", "start", "--method", "prune", "--out", "small"),
        ("compress", "start", "--method", "prune", "--overwrite", "--out", "small"),
        rf"small/(point\.json|cut\.pt|tuned\.pt|model\.pt|run/{RUN_FILES}|export/{EXPORT_FILES})|start/{RUN_FILES}",
        gives_up="small/",
    ),
    Command(
        "tokenize", (), ("data", "tokenize", "text.txt", "--processes", "2", "--out", "shards"),
        ("data", "tokenize", "text.txt", "--processes", "2", "--overwrite", "--out", "shards"),
        r"shards/(\d{5}\.bin|documents\.bin|index\.json|tokenizer\.json)|text\.txt",
    ),
    Command(
        "serve", (START, ("export", "start", "--format", "onnx", "--seconds", "0", "--out", "out")),
        ("serve", "out", "--port", "0"), ("eval", "out"),
        rf"out/{EXPORT_FILES}|start/{RUN_FILES}|out-eval-val\.html",
    ),
)  # fmt: skip
INPUTS = {
    "study.yaml": "title: two\nbase: {data: {name: digits}, train: {epochs: 1}}\n"
    "runs:\n  a: {model: {name: perceptron}}\n  b: {model: {name: perceptron}, optimizer: {lr: 0.01}}\n",
    "search.yaml": "model: {name: perceptron}\ndata: {name: digits}\ntrain: {epochs: 1}\n"
    "search:\n  optimizer.lr: {low: 0.001, high: 0.1, log: true}\n",
    "text.txt": "all the king's horses and all the king's men\n" * 40_000,
}


@dataclass
class Tally:
    """What was tried, and each loss with how to repeat it."""

    tried: Counter[str] = field(default_factory=Counter)
    hit: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)


def whole_things(folder: Path) -> dict[str, float]:
    """Everything in `folder` that is whole, with how far it is: a checkpoint's step, else 0.

    Its path is that of the run's folder for checkpoints, since best.pt and last.pt replace one another.
    """
    found: dict[str, float] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        try:
            if path.suffix == ".pt" and not path.name.startswith("."):
                key = str(path.parent.relative_to(folder)) if path.name in ("last.pt", "best.pt") else name
                found[key] = max(found.get(key, 0.0), float(checkpoint.load(path)["progress"]["step"]))
            elif path.is_dir() and is_export(path) and not path.name.startswith("."):
                read_folder(path).verify()
                found[name] = 0.0
            elif path.name == "index.json" and not path.parent.name.startswith("."):
                if read_index(path.parent, 8).damaged_files():
                    continue
                found[str(path.parent.relative_to(folder))] = 0.0
        except BigmodelError:
            continue
    return found


def strike(child: Child, kind: str, rng: random.Random, length: float) -> bool:
    """Do what `kind` says to a running command at a random moment; whether it met it."""
    time.sleep(rng.uniform(0.0, length))
    if not child.running():
        return False
    if kind == "stop":
        child.kill(rng.choice(STOPS))
    elif kind == "hang":
        child.kill(signal.SIGSTOP)
        time.sleep(rng.uniform(0.0, 0.5))
        child.kill(rng.choice((signal.SIGKILL, signal.SIGCONT)))
    elif kind == "twice":
        child.kill(signal.SIGINT)
        time.sleep(rng.uniform(0.0, 0.1))
        child.kill(signal.SIGINT)
    elif kind == "kill":
        child.kill(signal.SIGKILL)
    return True


def ended(child: Child, seconds: float = 120.0) -> int:
    """Its exit code, once it has ended; a server is stopped."""
    deadline = time.monotonic() + seconds
    while child.running():
        if time.monotonic() > deadline:
            child.kill(signal.SIGKILL)
            child.wait()
            return 999
        time.sleep(0.01)
    return child.wait()


def trial(command: Command, kind: str, rng: random.Random, folder: Path, sabotage: str | None = None) -> list[str]:
    """One trial in the empty `folder`; what was lost."""
    for name, text in INPUTS.items():
        if name in (*command.first, *command.again):
            (folder / name).write_text(text)
    (temporary := folder.with_name("temporary")).mkdir()
    system = {"TMPDIR": str(temporary)}
    with Nursery(folder) as nursery:
        for arguments in command.setup:
            code, child = nursery.run(*arguments, variables=system)
            if code:
                return [f"setup ended with {code}: {child.error[-200:]}"]
        began = time.monotonic()
        child = nursery.start(*command.first, variables=system)
        if command.name == "serve":
            time.sleep(1.0)
            child.kill(signal.SIGTERM)
        code = ended(child)
        length, lost = time.monotonic() - began, []
        if rng.random() < 0.5:  # else the blow falls on a second start, over something whole
            for path in sorted(folder.iterdir()):
                if path.name in command.first[command.first.index("--out") + 1 :] if "--out" in command.first else []:
                    _remove(path)
        before = whole_things(folder)
        start = command.again if before.keys() & set(command.first) else command.first
        given_up = command.gives_up if start == command.again else "$"
        before = {name: step for name, step in before.items() if not re.match(given_up, name)}
        largest = rng.randrange(1, 200_000) if kind == "cut" else None
        child = nursery.start(*start, largest_file=largest, sabotage=sabotage, variables=system)
        if kind != "cut":
            strike(child, kind, rng, length)
        if command.name == "serve" and child.running() and kind in ("cut", "hang"):
            child.kill(signal.SIGTERM)
        code = ended(child)
        if code not in CODES | {-signal.SIGKILL} | {-n for n in STOPS} or "a bug in bigmodel" in child.error:
            lost.append(f"ended with {code}: {child.error[-300:]}")
        after = whole_things(folder)
        lost += [f"{name} was whole" for name, step in before.items() if after.get(name, -1.0) < step]
        again = command.again
        code, child = nursery.run(*again, variables=system)
        if code and command.fresh:
            code, child = nursery.run(*command.fresh, variables=system)
        if code:
            lost.append(f"the next start ended with {code}: {child.error[-300:]}")
        left = [str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() or p.name.startswith(".")]
        lost += [f"{name} is left" for name in left if not re.fullmatch(command.files, name)]
        scratch.remove_leftovers(temporary, temporary.stat().st_uid)  # as the next command does
        lost += [f"{path.name} is left in TMPDIR" for path in temporary.iterdir() if not _pythons_own(path)]
    return lost


def _pythons_own(path: Path) -> bool:
    """The file with which Python's ``tempfile`` tries whether a folder can be written, removed a moment later."""
    return path.is_file() and path.read_bytes() in (b"", b"blat")


def _remove(path: Path) -> None:
    import shutil

    shutil.rmtree(path) if path.is_dir() else path.unlink()


def soak(minutes: float, seed: int, say: Callable[[str], None], commands: Sequence[Command] = COMMANDS) -> Tally:
    """Trials until the time is over, or one of each command if `minutes` is 0."""
    tally, deadline, number = Tally(), time.monotonic() + 60 * minutes, seed * 1_000_000
    while True:
        for command in commands:
            if minutes and time.monotonic() > deadline:
                return tally
            number += 1
            rng = random.Random(number)
            kind = rng.choice(KINDS)
            with tempfile.TemporaryDirectory() as name:
                (folder := Path(name) / "work").mkdir()
                lost = trial(command, kind, rng, folder)
            tally.tried[f"{command.name}: {kind}"] += 1
            for line in lost:
                tally.lost.append(f"{command.name}, {kind}, --trial {number}: {line}")
                say(f"LOST {tally.lost[-1]}")
        say(f"{sum(tally.tried.values())} trials, {len(tally.lost)} lost")
        if not minutes:
            return tally


def one(number: int) -> list[str]:
    """Repeat the trial `number`."""
    rng = random.Random(number)
    command = COMMANDS[(number % 1_000_000 - 1) % len(COMMANDS)]
    with tempfile.TemporaryDirectory() as name:
        (folder := Path(name) / "work").mkdir()
        return trial(command, rng.choice(KINDS), rng, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long; 0: one trial of each command")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trial", type=int, help="repeat the trial of this number, which a loss names")
    parser.add_argument("--only", help="the commands whose name contains this")
    given = parser.parse_args()
    if given.trial is not None:
        print("\n".join(one(given.trial)) or "nothing lost")  # noqa: T201
        return
    commands = [command for command in COMMANDS if given.only is None or given.only in command.name]
    if not commands:
        raise InputError(f"--only {given.only}", "expected part of a command's name")
    tally = soak(given.minutes, given.seed, lambda line: print(line, flush=True), commands)  # noqa: T201
    print(json.dumps({"tried": dict(sorted(tally.tried.items())), "lost": tally.lost}, indent=1))  # noqa: T201
    sys.exit(1 if tally.lost else 0)


if __name__ == "__main__":
    main()
