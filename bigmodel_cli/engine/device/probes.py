"""The probes that load native libraries; ``engine/device/env_check.py`` runs this file in a subprocess.

Each argument names a probe. Each result is printed to stdout as a line of JSON, as soon as it is known.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import subprocess
import sys
from importlib import metadata
from typing import Any

from bigmodel_cli.core.addresses import scrub
from bigmodel_cli.core.extras import extras, install_line
from bigmodel_cli.engine.device.check import GB, TORCH_FIX, Check, Status
from bigmodel_cli.engine.device.hardware import cpu_info

FIX_TORCH_FIRST = "fix torch first"
SLOW = ("litert_torch", "coremltools", "torchao")
"""Packages that are too slow to import here: only their version is reported."""
BINARIES = (".so", ".pyd", ".dylib")


PROBES: dict[str, tuple[Status, str]] = {
    "torch": ("fail", TORCH_FIX),
    "torchvision": ("fail", TORCH_FIX),
    "cuda": ("warn", "restart the machine, or hide the GPU: CUDA_VISIBLE_DEVICES="),
    "bf16": ("warn", "--precision fp32"),
    **{name: ("warn", f"pip install --force-reinstall {name}") for packages in extras().values() for name in packages},
}
"""The status and the fix to report if a probe crashes or hangs."""


def probe(name: str) -> list[Check]:
    """The checks of `name`, one of :data:`PROBES`. Never raises."""
    try:
        if name in ("torch", "torchvision"):
            return [Check(name, "pass", str(importlib.import_module(name).__version__))]
        if name in ("cuda", "bf16"):
            return check_cuda() if name == "cuda" else check_bf16()
        return [check_extra(name)]
    except Exception as error:  # a broken binary raises OSError, RuntimeError, AttributeError, ...
        status, fix = PROBES[name]
        if name in ("cuda", "bf16"):
            return [Check(name, status, f"cannot be tested: {first_line(error)}", FIX_TORCH_FIRST)]
        return [Check(name, status, f"does not import: {first_line(error)}", fix)]


def first_line(error: Exception) -> str:
    """The first non-empty line of the error message, else the class of the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__


def check_cuda() -> list[Check]:
    """CUDA, cuDNN, and the memory of each GPU."""
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch was built without CUDA" if built is None else f"no usable GPU (torch was built for CUDA {built})"
        fix = "none needed for the CPU; for a GPU install its driver and torch with CUDA"
        if built is not None:
            fix = f"for a GPU its driver; without one, a CPU build of torch is GBs smaller: {cpu_build_line()}"
        return [Check("cuda", "warn", why, fix)]
    found = [Check("cuda", "pass", f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPU")]
    version = torch.backends.cudnn.version()
    if version is None:
        found.append(Check("cudnn", "warn", "torch finds no cuDNN: convolutions will be slow", TORCH_FIX))
    else:
        found.append(Check("cudnn", "pass", str(version)))
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        found.append(Check(f"gpu {i}", "pass", f"{name}, {free / GB:.1f} of {total / GB:.1f} GB free"))
    return found


def cpu_build_line() -> str:
    """The command that installs a CPU build of torch, from the index for it that pip is configured with, if any."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = [sys.executable, "-m", "pip", "config", "list"]
        listed = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=False).stdout
        indexes = re.findall(r"[a-z]+://[^\s'\"]+", listed)
        if cpu := next((scrub(index) for index in indexes if index.rstrip("/").endswith("/cpu")), None):
            return f"pip install --force-reinstall torch torchvision --index-url {cpu}"
    return "pip install --force-reinstall torch torchvision --index-url (the CPU index on pytorch.org)"


def check_bf16() -> list[Check]:
    """Whether a bf16 matrix product is correct, and whether the hardware supports it."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.arange(64.0, device=device).view(8, 8) / 64
    product = (x.bfloat16() @ x.bfloat16()).float()
    if not torch.allclose(product, x @ x, rtol=0.02, atol=0.02):
        return [Check("bf16", "warn", f"a matrix product on {device} is wrong", "--precision fp32")]
    if device == "cuda":
        fast = torch.cuda.get_device_capability() >= (8, 0)
    else:
        fast = bool({"avx512_bf16", "amx_bf16", "bf16"} & cpu_info()[1])
    speed = "in hardware" if fast else "emulated: slow"
    return [Check("bf16", "pass", f"a matrix product on {device} is correct ({speed})")]


def check_without_import(package: str) -> Check | None:
    """Check an optional package without importing it; None if only an import can tell."""
    owners = {name: len(packages) for name, packages in extras().items() if package in packages}
    name = min(owners, key=lambda owner: owners[owner], default=None)  # the smallest extra that contains it
    if name is None:
        return None
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Check(package, "warn", "not installed (optional)", install_line(name), absent=True)
    if package == "coremltools" and sys.platform != "darwin":
        what = f"{version}, but Core ML runs on macOS only"
        return Check(package, "warn", what, "export coreml on a Mac", absent=True)
    return None if package not in SLOW and _has_binaries(package) else Check(package, "pass", version)


def _has_binaries(package: str) -> bool:
    """Whether it contains native libraries, which may be incompatible: only an import can tell."""
    return any(file.suffix in BINARIES for file in metadata.files(package) or ())


def module_of(package: str) -> str:
    """What an installed package is imported as: ``faiss`` of faiss_cpu, ``google.protobuf`` of protobuf."""
    folders = {file.parent.as_posix() for file in metadata.files(package) or () if file.name == "__init__.py"}
    modules = [folder.replace("/", ".") for folder in folders]
    return min(modules, key=lambda name: (name != package, name.count("."), name), default=package)


def check_extra(package: str) -> Check:
    """Import an optional package and report its version."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report each import over the network
    importlib.import_module(module_of(package))
    return Check(package, "pass", metadata.version(package))


def main(names: list[str]) -> None:
    """Print the checks of each of `names` as a line of JSON."""
    for name in names:
        result: dict[str, Any] = {"probe": name, "checks": [c.to_dict() for c in probe(name)]}
        sys.stdout.write(f"\n{json.dumps(result)}\n")  # start a new line, since a package may have printed part of one
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
