"""Writes and tests ``example.py``: about thirty lines that run an export on one sample, without bigmodel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bigmodel_cli.core.errors import MachineError, printable
from bigmodel_cli.core.files.scratch import scratch_folder
from bigmodel_cli.core.processes.call_limit import bounded
from bigmodel_cli.core.registry import Entry, examples
from bigmodel_cli.export import folder as layout
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.runtime import Runtime
from bigmodel_cli.tasks.answers import PROBABILITY_TOLERANCE, SHOW, answer_of

if TYPE_CHECKING:
    from bigmodel_cli.export.subject import Subject

LIMIT = 300  # seconds
END = "\x1e"
"""Stands between the answers for two samples: ASCII's record separator, which no name that is shown contains."""
CONTENTS = '''\
"""Show the contents of this folder: python example.py. Needs {needs}."""

{standard}

{imports}

here = Path(__file__).resolve().parent
{start}{run}
'''
START = """
sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a name
try:
    for line in (here / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        if name not in ("example.py", "MODEL_CARD.md"):  # yours to edit
            with (here / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    sys.exit(f"{name}: not the file that was exported")
except OSError as error:
    sys.exit(f"{error}: copy the whole folder")
"""
"""Checks the folder before anything is read from it."""
STANDARD = ("import hashlib", "import json", "import sys", "from pathlib import Path")


@dataclass(frozen=True)
class Example:
    """How to write and test the example for one kind of input; registered under the kind of its spec.

    Args:
        script: (runtime, task, preprocessing) -> the program; None if the task is not supported.
        arguments: (subject, an empty folder) -> the arguments to test the program with, one at a time.
        expected: (format, subject, run, argument) -> the expected logits (1,K), and the K names.
    """

    script: Callable[[Runtime, Any, Mapping[str, Any]], str | None]
    arguments: Callable[[Subject, Path], list[str]]
    expected: Callable[[Entry, Subject, Run, str], tuple[torch.Tensor, tuple[str, ...]]]


def answer_script(task: Any) -> str:
    """The end of the program: the answer from ``logits``."""
    return SHOW + answer_of(task).script.lstrip("\n")


def example_for(task: Any) -> Example | None:
    """The registered example for the task's kind of input, or None."""
    kind = task.spec.kind
    return examples.get(kind)() if kind in examples.found else None


def example_script(entry: Entry, task: Any, preprocess: Mapping[str, Any]) -> str | None:
    """The program for a format and a task; None if the task is not supported."""
    own = entry.meta["runtime"]
    if not own.answers:
        standard = "\n".join(line for line in STANDARD if "json" not in line)
        return CONTENTS.format(
            needs=", ".join(own.needs), standard=standard, imports=own.imports, start=START, run=own.run
        )
    example = example_for(task)
    return None if example is None else example.script(own, task, preprocess)


def run_example(entry: Entry, subject: Subject, folder: Path, run: Run) -> dict[str, Any] | None:
    """Run the folder's example on real samples, without access to bigmodel (and to torch, unless it needs torch).

    Returns its first top prediction and how many samples it was run on; ``failed`` has a line if an output is wrong.
    None if there is no example.
    """
    if not (folder / layout.EXAMPLE).exists():
        return None
    own, example = entry.meta["runtime"], example_for(subject.task)
    with scratch_folder() as place:
        if example is None or not own.answers:
            return _shown(_run_isolated(folder / layout.EXAMPLE, [], place, "torch" in own.packages))
        found: dict[str, Any] = {}
        spec, kind = subject.task.spec, answer_of(subject.task)
        arguments = example.arguments(subject, place)
        done = _run_isolated(folder / layout.EXAMPLE, arguments, place, "torch" in own.packages)
        if done.returncode:
            return {**_shown(done), "samples": len(arguments)}
        for argument, answer in zip_longest(arguments, done.stdout.split(END)[: len(arguments)], fillvalue=""):
            with bounded():
                logits, names = example.expected(entry, subject, run, argument)
            expected = kind.values(logits.double().numpy(), spec)[0].tolist()
            compared = _compare(answer, expected, names, kind.tolerance(spec) if spec.classes else None)
            found = found or {**compared, "samples": len(arguments)}
            if compared["failed"]:
                return {**found, "failed": [f"{compared['failed'][0]} ({Path(argument).name[:60]})"]}
        return found


def _shown(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What the example of a format without answers prints first, or how it ended."""
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no error message"])[-1]
        return {"answer": None, "failed": [f"example.py ended with {done.returncode}: {last[:150]}"]}
    return {"answer": done.stdout.splitlines()[0] if done.stdout else "", "failed": []}


def _compare(
    text: str,
    expected: Sequence[float] | torch.Tensor,
    classes: tuple[str, ...],
    tolerance: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Compare the lines ``12.3456%  class`` or ``3.25  number`` with the `expected` values."""
    rows = [line.lstrip().partition("  ") for line in text.split("\n") if line.strip()]
    if not rows:
        return {"answer": None, "failed": ["example.py printed nothing"]}
    failed = []
    shown = [printable(name) for name in classes]  # as the example prints them: one line each
    for number, _, name in rows:
        if name not in shown:
            failed.append(f"example.py prints an unknown class: {name[:60]}")
            continue
        value = float(number.rstrip("%")) / (100 if number.endswith("%") else 1)
        quantity = "probability" if number.endswith("%") else "value"
        limits = tolerance or (PROBABILITY_TOLERANCE,) * len(classes)
        apart = [(abs(value - float(expected[i])), limits[i]) for i, other in enumerate(shown) if other == name]
        difference, most = min(apart)
        if not difference <= most:
            failed.append(f"example.py is off by {difference:.2g} in the {quantity} of {name}")
    first = rows[0][0]
    return {"answer": rows[0][2], "probability" if first.endswith("%") else "value": first, "failed": failed[:1]}


def program(allow_torch: bool) -> str:
    """The Python program that runs the script ``sys.argv[1]`` on each argument after it, or once without one."""
    hidden = ["bigmodel_cli", "openvino_telemetry"] + ([] if allow_torch else ["torch"])
    return f"""\
import runpy, sys
sys.modules.update(dict.fromkeys({json.dumps(hidden)}))
script, *arguments = sys.argv[1:]
for given in [[x] for x in arguments] or [[]]:
    sys.argv = [script, *given]
    runpy.run_path(script, run_name="__main__")
    sys.stdout.write({json.dumps(END)})
"""


def _run_isolated(
    script: Path, arguments: list[str], place: Path, allow_torch: bool
) -> subprocess.CompletedProcess[str]:
    """Run `script` on each of `arguments` in a Python that cannot import bigmodel, telemetry, or (unless `allow_torch`)
    torch: one after another in one process, since its imports take longer than its work. Each answer ends with END.
    """
    command = [sys.executable, "-P", "-c", program(allow_torch), str(script.resolve()), *arguments]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    try:
        return subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        raise MachineError(
            f"example.py did not finish in {LIMIT} s", hint="try again when the machine is less busy"
        ) from None
