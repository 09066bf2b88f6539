"""Checks this machine by exercising each component. A probe that fails does not affect the others.

Probes that load native libraries (torch, CUDA, ONNX) run in subprocesses, so that a crash or a hang becomes
a line of the report.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import shorten
from bigmodel_cli.core.processes import cgroups, child_tree
from bigmodel_cli.core.processes.cpu_count import available_cores
from bigmodel_cli.core.processes.stop_signals import KILL, signal_name
from bigmodel_cli.engine.device.check import GB, Check, Status
from bigmodel_cli.engine.device.hardware import cpu_info, memory_bytes

COMPILE_LIMIT = 8.5  # seconds from the start; the command as a whole takes ten
COMPILE_REQUIRED_LIMIT = 120.0  # where a working compiler is required: the first compile on a machine takes 15 to 40
PROBE_LIMIT = 9.0  # seconds from the start, for all probes of torch and the extras
PROBE_REQUIRED_LIMIT = 90.0  # where something is required, an answer is worth waiting for
BUSY = "run it again on a quieter machine, or --require it, which waits longer"
IMPORT_LIMIT = 40.0  # seconds for torch and torchvision, whose first import can be slow
LEAST_LIMIT = 3.0  # seconds that the probes have at least, after a slow import of torch or another's hang
NETWORK_LIMIT = 2.0
COMPILE_PROGRAM = """
import torch
x = torch.ones(8, device="cuda" if torch.cuda.is_available() else "cpu")
print(float(torch.compile(lambda x: (x * 2 + 1).sum())(x)))
"""


def run_checks(
    data_root: Path,
    data_sets: Sequence[str],
    out: Path,
    compile_limit: float = COMPILE_LIMIT,
    probe_limit: float = PROBE_LIMIT,
) -> list[Check]:
    """Run every check; returns them in the order of the report. Slow ones run concurrently.

    Args:
        data_root: the folder of data files.
        data_sets: the names of the data sets found in it.
        out: where runs would be written.
        compile_limit: seconds from the start that torch.compile may take.
        probe_limit: the same of all probes of torch and the extras.
    """
    started = time.monotonic()
    off = os.environ.get("TORCHDYNAMO_DISABLE") == "1"
    with contextlib.nullcontext() if off else _child(["-c", COMPILE_PROGRAM]) as compiling:  # the slowest starts first
        network = {host: _in_background(_reach, host) for host in download_hosts()}
        driver = _in_background(_driver)
        found = [_python(), _cpu(), *_probed(started, probe_limit), _compile(compiling, started, compile_limit)]
    with contextlib.suppress(queue.Empty):  # its own timeout is shorter
        found.insert(next(i for i, c in enumerate(found) if c.name == "cuda") + 1, driver.get(timeout=5))
    found += [_disk(out), _memory(), _data(data_root, data_sets)]
    found.append(_network(network, started + NETWORK_LIMIT + 0.5))
    return found


def _in_background(probe: Callable[..., Check], *arguments: Any) -> queue.Queue[Check]:
    """Run `probe` in a daemon thread, which does not keep the process alive if it hangs."""
    answer: queue.Queue[Check] = queue.Queue()
    threading.Thread(target=lambda: answer.put(probe(*arguments)), daemon=True).start()
    return answer


@contextlib.contextmanager
def _child(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A Python process with the same import path. On exit it is killed with all of its children."""
    paths = os.pathsep.join(p for p in sys.path if p)
    # One compile worker: a pool of them takes longer to start than the function to compile.
    environment = {**os.environ, "PYTHONPATH": paths, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-P", *arguments],
        stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace",
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        for signum in (signal.SIGTERM, KILL):  # TERM first, so that a compiler removes its partial files
            child_tree.end(process, signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.3)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def _probed(started: float, limit: float) -> list[Check]:
    """The probes of ``engine/device/probes.py``; after a crash or a hang, the rest run in a new process."""
    from bigmodel_cli.engine.device.probes import PROBES, check_without_import

    without_import = {name: check for name in PROBES if (check := check_without_import(name))}
    remaining, found = [name for name in PROBES if name not in without_import], []
    while remaining:
        with _child(["-m", "bigmodel_cli.engine.device.probes", *remaining]) as process:
            lines: queue.Queue[str] = queue.Queue()
            threading.Thread(target=_pump, args=(process, lines), daemon=True).start()
            done, reason = _collect(process, lines, remaining, started, limit)
        found += done
        if reason is not None:
            status, fix = PROBES[remaining[0]]
            fix = BUSY if reason.startswith("no answer") else fix
            found.append(Check(remaining.pop(0), status, reason, fix))
    return found + list(without_import.values())


def _pump(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError):  # the stream is closed when the process is killed
        for line in process.stdout:
            lines.put(line)
    lines.put("")


def _collect(
    process: subprocess.Popen[str], lines: queue.Queue[str], remaining: list[str], started: float, rest: float
) -> tuple[list[Check], str | None]:
    """The checks that the process reports, and why it stopped early, or None. Finished probes leave `remaining`."""
    found: list[Check] = []
    torch_answered = time.monotonic()
    while remaining:
        importing = remaining[0] in ("torch", "torchvision")
        limit = max(IMPORT_LIMIT, rest) if importing else rest
        try:
            until = max(started + limit, torch_answered + LEAST_LIMIT)
            line = lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return found, f"no answer after {time.monotonic() - started:.0f} s"
        if not line:
            code = process.wait()
            assert process.stderr is not None
            last = (process.stderr.read().strip().splitlines() or [""])[-1]
            exited = f"exited with code {code}" + (f": {last[:120]}" if last else "")
            return found, f"crashed ({signal_name(-code)})" if code < 0 else exited
        if line.startswith("{"):  # a package may write to stdout when it is imported
            report = json.loads(line)
            found += [Check(**c) for c in report["checks"]]
            remaining.remove(report["probe"])
            torch_answered = time.monotonic() if importing else torch_answered
    return found, None


def _python() -> Check:
    version = platform.python_version()
    return Check("python", "pass", f"{version}, {platform.system()} {platform.machine()}")


def _cpu() -> Check:
    """Model name and the instruction sets that matter for training."""
    name, flags = cpu_info()
    sets = {"AVX2": "avx2", "AVX-512": "avx512f", "AVX-512 bf16": "avx512_bf16", "AMX": "amx_tile",
            "AMX bf16": "amx_bf16", "NEON": "asimd", "SVE": "sve", "bf16": "bf16"}  # fmt: skip
    have = [label for label, flag in sets.items() if flag in flags]
    cores = available_cores()
    limited = cgroups.cpu_limit() == cores and " by the limit of this container or service"
    value = ", ".join([name or platform.machine(), f"{cores} core{'s' * (cores != 1)}{limited or ''}", *have])
    return Check("cpu", "pass", value, amount=float(cores))


def _driver() -> Check:
    """The NVIDIA driver, as nvidia-smi reports it."""
    fix = "none needed for the CPU; for an NVIDIA GPU install its driver"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=4)
    except FileNotFoundError:
        return Check("driver", "warn", "no NVIDIA driver", fix, absent=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("driver", "warn", f"nvidia-smi failed: {error}", "restart the machine or reinstall the driver")
    answer = ((done.stdout or done.stderr).strip().splitlines() or ["no answer"])[0]
    if done.returncode:
        return Check("driver", "warn", f"nvidia-smi failed: {answer[:120]}", "reinstall the NVIDIA driver")
    return Check("driver", "pass", f"NVIDIA {answer}")


def _compile(process: subprocess.Popen[str] | None, started: float, limit: float) -> Check:
    """torch.compile of a small function: a hang or a crash of the compiler is a warning. None: it is switched off."""
    if process is None:
        return Check("compile", "warn", "TORCHDYNAMO_DISABLE=1: nothing is compiled", "unset TORCHDYNAMO_DISABLE")
    fix = "only placement.compile=true needs it; install g++ or clang (Debian: apt install g++)"
    try:
        answer, errors = process.communicate(timeout=max(0.2, started + limit - time.monotonic()))
    except subprocess.TimeoutExpired:
        value = f"torch.compile did not finish in {limit:g} s: the first time on a machine is the slowest"
        return Check("compile", "warn", value, "bigmodel env-check --require compile, which waits for it")
    if process.returncode < 0:
        return Check("compile", "warn", f"torch.compile crashed ({signal_name(-process.returncode)})", fix)
    if process.returncode or answer.strip() != "24.0":
        # The error is a line "SomethingError: reason"; several lines of advice may follow.
        reasons = [line for line in errors.splitlines() if re.match(r"[\w.]*(Error|Exception|Invalid\w*)\b", line)]
        reason = (reasons or errors.strip().splitlines() or [f"a wrong result, {answer.strip()!r}"])[-1]
        return Check("compile", "warn", f"torch.compile failed: {reason[:120]}", fix)
    return Check("compile", "pass", "torch.compile compiled a function, and its result is correct")


def _disk(folder: Path) -> Check:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check("disk", "warn", f"{folder}: {error.strerror}", "run bigmodel in a folder that exists")
    status: Status = "pass" if free > 2 * GB else "warn"
    fix = None if status == "pass" else "free some space, or write elsewhere with --out"
    return Check("disk", status, f"{free / GB:.1f} GB free in {folder}", fix, float(free))


def _memory() -> Check:
    try:
        free, total = memory_bytes()
    except OSError:
        return Check("memory", "warn", "cannot be read on this system", "none needed")
    status: Status = "pass" if free > 2 * GB else "warn"
    fix = None if status == "pass" else "close programs, or train with a smaller --batch-size"
    limited = cgroups.memory_limit() == total and ", by the limit of this container or service"
    return Check("memory", status, f"{free / GB:.1f} of {total / GB:.1f} GB free{limited or ''}", fix, float(total))


def _data(root: Path, names: Sequence[str]) -> Check:
    if not root.is_dir():
        what, fix = f"no folder {root}", "set BIGMODEL_DATA, or let train download into it"
        return Check("data", "warn", what, fix, absent=True)
    if not names:
        what, fix = f"no known data set in {root}", "--data-dir, or let train download into it"
        return Check("data", "warn", what, fix, absent=True)
    return Check("data", "pass", f"{', '.join(names)} in {root}")


def download_hosts() -> list[str]:
    """The hosts that data is downloaded from, found in the source code of the data sets."""
    spec = importlib.util.find_spec("bigmodel_cli.data")
    assert spec is not None and spec.submodule_search_locations
    files = [f for folder in spec.submodule_search_locations for f in sorted(Path(folder).rglob("*.py"))]
    return sorted({h for f in files for h in re.findall(r"https://([\w-]+\.[\w.-]+)/", f.read_text(encoding="utf-8"))})


def _reach(host: str) -> Check:
    try:
        with socket.create_connection((host, 443), timeout=NETWORK_LIMIT):
            return Check(host, "pass", "reached")
    except OSError as error:
        return Check(host, "warn", error.strerror or str(error))


def _network(answers: Mapping[str, queue.Queue[Check]], until: float) -> Check:
    """One line for all download hosts. A warning, not a failure: with the data on disk, training needs no network."""
    reasons: dict[str, str] = {}
    for host, answer in answers.items():
        try:
            check = answer.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:  # a DNS lookup has no timeout
            check = Check(host, "warn", "no answer from the name server")
        if check.status != "pass":
            reasons[host] = check.value
    reached = len(answers) - len(reasons)
    if not reasons:
        return Check("network", "pass", f"all {reached} download hosts reached", amount=float(reached))
    why = f"{reached} of {len(answers)} download hosts reached; not {shorten(list(reasons))}"
    why += f" ({shorten(sorted(set(reasons.values())))})"
    offline = "downloads need a network or a proxy; digits and your own files need none"
    return Check("network", "warn", why, offline if not reached else "only its data sets need it", float(reached))
