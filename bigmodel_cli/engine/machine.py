"""What this machine is and can do: each probe does the thing it reports on, and none of them can fail the others."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

Status = Literal["pass", "warn", "fail"]
EXTRAS = {"onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx"}
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com", "https://www.cs.toronto.edu")
COMPILE_LIMIT = 7.0  # seconds; the whole command answers in ten
COMPILE_PROGRAM = "import torch; print(float(torch.compile(lambda x: (x * 2 + 1).sum())(torch.ones(8))))"
GB = 1e9


@dataclass(frozen=True)
class Check:
    """One line of env-check: `value` is what was found, `fix` what to do about it."""

    name: str
    status: Status
    value: str
    fix: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def checks(data_root: Path, out: Path) -> list[Check]:
    """Every check. The slow ones (a compiler, the network) run beside the imports."""
    with ThreadPoolExecutor(8) as pool:
        compiling = pool.submit(_compile)
        network = [pool.submit(_reach, address) for address in MIRRORS]
        found = [_python(), _cpu(), *_imports()]
        found += _guarded(_cuda) + _guarded(_bf16)
        found += [_done(compiling), *(_extra(name, extra) for name, extra in EXTRAS.items())]
        found += [_disk(out), _memory(), _data(data_root), *(_done(f) for f in network)]
    return found


def _guarded(probe: Callable[[], list[Check]]) -> list[Check]:
    """A probe that needs torch, where torch may be broken in any way at all."""
    try:
        return probe()
    except Exception as error:
        return [Check(probe.__name__.strip("_"), "warn", f"cannot be tested: {error}", "mend torch first")]


def _done(future: Future[Check]) -> Check:
    return future.result()


def _python() -> Check:
    version = platform.python_version()
    return Check("python", "pass", f"{version}, {platform.system()} {platform.machine()}")


def _imports() -> list[Check]:
    """torch and torchvision must import, and must belong together."""
    found = []
    for name in ("torch", "torchvision"):
        try:
            module = importlib.import_module(name)
            found.append(Check(name, "pass", str(module.__version__)))
        except Exception as error:  # a broken binary raises OSError, RuntimeError, AttributeError, ...
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            fix = "pip install --force-reinstall torch torchvision (the two must be a pair)"
            found.append(Check(name, "fail", f"does not import: {reason[:120]}", fix))
    return found


def _cpu() -> Check:
    """Model name and the instruction sets that matter for training."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return Check("cpu", "pass", f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {k.strip(): v.strip() for k, v in fields.items()}
    flags = set(fields.get("flags", "").split())
    sets = {"AVX2": "avx2", "AVX-512": "avx512f", "AVX-512 bf16": "avx512_bf16", "AMX": "amx_tile"}
    have = [name for name, flag in sets.items() if flag in flags]
    cores = len(os.sched_getaffinity(0))
    return Check("cpu", "pass", f"{fields.get('model name', platform.machine())}, {cores} cores, {', '.join(have)}")


def _cuda() -> list[Check]:
    import torch

    if not torch.cuda.is_available():
        why = "torch was built without CUDA" if torch.version.cuda is None else "no usable GPU or driver found"
        fix = "none needed for the CPU; for a GPU install its driver and the CUDA build of torch"
        return [Check("cuda", "warn", why, fix)]
    driver = (
        shutil.which("nvidia-smi")
        and subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=5,
        ).stdout.split("\n")[0]
    )
    value = f"{torch.version.cuda}, driver {driver or 'unknown'}, cuDNN {torch.backends.cudnn.version()}"
    found = [Check("cuda", "pass", value)]
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        found.append(Check(f"gpu {i}", "pass", f"{name}, {free / GB:.1f} of {total / GB:.1f} GB free"))
    return found


def _bf16() -> list[Check]:
    """A bf16 product is done and compared; whether the processor has it in hardware decides its speed."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.arange(64.0, device=device).view(8, 8) / 64
    got = (x.bfloat16() @ x.bfloat16()).float()
    if not torch.allclose(got, x @ x, rtol=0.02, atol=0.02):
        return [Check("bf16", "warn", f"wrong product on {device}", "--precision fp32")]
    return [Check("bf16", "pass", f"a product on {device} is right")]


def _compile() -> Check:
    """torch.compile in a process of its own: a hang or a crash of the compiler is a warning here."""
    fix = "only --set placement.compile=true needs it; install gcc or clang (Debian: apt install g++)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", COMPILE_PROGRAM], capture_output=True, text=True, timeout=COMPILE_LIMIT
        )
    except subprocess.TimeoutExpired:
        return Check("compile", "warn", f"torch.compile took more than {COMPILE_LIMIT:.0f} s", "try again when idle")
    if done.returncode or done.stdout.strip() != "24.0":
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return Check("compile", "warn", f"torch.compile failed: {reason[:120]}", fix)
    return Check("compile", "pass", "torch.compile compiled and ran a function")


def _extra(package: str, extra: str) -> Check:
    try:
        version = metadata.version(package)
        importlib.import_module(package)
    except metadata.PackageNotFoundError:
        return Check(package, "warn", "not installed (optional)", f"pip install 'bigmodel[{extra}]'")
    except Exception as error:
        fix = f"pip install --force-reinstall {package}"
        return Check(package, "warn", f"does not import: {str(error).splitlines()[0][:120]}", fix)
    return Check(package, "pass", version)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    status: Status = "pass" if free > 2 * GB else "warn"
    return Check("disk", status, f"{free / GB:.1f} GB free in {folder}", None if status == "pass" else "make room")


def _memory() -> Check:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {k: int(v.split()[0]) * 1024 for k, v in (line.split(":") for line in lines)}
        free, total = sizes["MemAvailable"], sizes["MemTotal"]
    except (OSError, KeyError):
        return Check("memory", "warn", "cannot be read on this system")
    status: Status = "pass" if free > 2 * GB else "warn"
    fix = None if status == "pass" else "close programs, or train with a smaller --batch-size"
    return Check("memory", status, f"{free / GB:.1f} of {total / GB:.1f} GB free", fix)


def _data(root: Path) -> Check:
    if not root.is_dir():
        return Check("data", "warn", f"no folder {root}", "set BIGMODEL_DATA, or let train download into it")
    names = sorted(p.name for p in root.iterdir() if not p.name.startswith("."))
    return Check("data", "pass", f"{root}: {', '.join(names[:6]) or 'empty'}")


def _reach(address: str) -> Check:
    """A warning at most: training needs no network once the data is there."""
    host = urlsplit(address).hostname or address
    try:
        with socket.create_connection((host, 443), timeout=2):
            return Check(f"network {host}", "pass", "reached")
    except OSError as error:
        return Check(f"network {host}", "warn", f"not reached: {error}", "--data-dir, or --data digits")
