"""The probes that load foreign binaries; ``engine/device/env_check.py`` runs this file as a process of its own.

Each argument names a probe; each answer is a line of JSON on stdout, as soon as it is known.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import sys
from importlib import metadata
from typing import Any

from bigmodel_cli.engine.device.check import GB, TORCH_FIX, Check, Status
from bigmodel_cli.engine.device.hardware import cpu_info

FIX_TORCH_FIRST = "fix torch first"
SLOW = ("litert_torch", "coremltools", "torchao")
"""Packages whose import takes the time that all probes have: their version is enough."""
BINARIES = (".so", ".pyd", ".dylib")


@functools.cache
def extras() -> dict[str, tuple[str, ...]]:
    """The extras that a user may install and the packages of each, by the name they are imported under.

    They are what the metadata of the installed bigmodel says: none where it runs from a folder of source.
    """
    try:
        wanted = metadata.requires("bigmodel") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for line in wanted:
        match = re.match(r"([\w.-]+).*;.*\bextra == ['\"]([\w-]+)['\"]", line)
        if match and match[2] != "dev" and match[1] != "bigmodel":
            found.setdefault(match[2], []).append(re.sub("[-.]", "_", match[1]))
    return {name: tuple(packages) for name, packages in found.items()}


PROBES: dict[str, tuple[Status, str]] = {
    "torch": ("fail", TORCH_FIX),
    "torchvision": ("fail", TORCH_FIX),
    "cuda": ("warn", "restart the machine, or hide the GPU: CUDA_VISIBLE_DEVICES="),
    "bf16": ("warn", "--precision fp32"),
    **{name: ("warn", f"pip install --force-reinstall {name}") for packages in extras().values() for name in packages},
}
"""The status and the remedy to report where a probe crashes or hangs."""


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
    """The first line of the error message that is not empty, else the class of the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__


def check_cuda() -> list[Check]:
    """CUDA, cuDNN, and the memory of each GPU."""
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch was built without CUDA" if built is None else f"no usable GPU (torch was built for CUDA {built})"
        return [Check("cuda", "warn", why, "none needed for the CPU; for a GPU install its driver and torch with CUDA")]
    found = [Check("cuda", "pass", f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPU")]
    version = torch.backends.cudnn.version()
    if version is None:
        found.append(Check("cudnn", "warn", "torch finds no cuDNN: convolutions are slow", TORCH_FIX))
    else:
        found.append(Check("cudnn", "pass", str(version)))
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        found.append(Check(f"gpu {i}", "pass", f"{name}, {free / GB:.1f} of {total / GB:.1f} GB free"))
    return found


def check_bf16() -> list[Check]:
    """Whether a bf16 product is right, and whether it runs in hardware."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.arange(64.0, device=device).view(8, 8) / 64
    product = (x.bfloat16() @ x.bfloat16()).float()
    if not torch.allclose(product, x @ x, rtol=0.02, atol=0.02):
        return [Check("bf16", "warn", f"a product on {device} is wrong", "--precision fp32")]
    if device == "cuda":
        fast = torch.cuda.get_device_capability() >= (8, 0)
    else:
        fast = bool({"avx512_bf16", "amx_bf16", "bf16"} & cpu_info()[1])
    speed = "in hardware" if fast else "emulated, so slow"
    return [Check("bf16", "pass", f"a product on {device} is right ({speed})")]


def check_without_import(package: str) -> Check | None:
    """The check of an optional package that needs no import; None where only an import can tell."""
    owners = {name: len(packages) for name, packages in extras().items() if package in packages}
    name = min(owners, key=lambda owner: owners[owner], default=None)  # the extra that installs least beside it
    if name is None:
        return None
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Check(package, "warn", "not installed (optional)", f"pip install 'bigmodel[{name}]'")
    if package == "coremltools" and sys.platform != "darwin":
        return Check(package, "warn", f"{version}, but Core ML runs on macOS only", "export coreml on a Mac")
    return None if package not in SLOW and _has_binaries(package) else Check(package, "pass", version)


def _has_binaries(package: str) -> bool:
    """Whether it holds foreign binaries, which may be for another machine: only importing it tells."""
    return any(file.suffix in BINARIES for file in metadata.files(package) or ())


def check_extra(package: str) -> Check:
    """Import an optional package and report its version."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report each import over the network
    importlib.import_module(package)
    return Check(package, "pass", metadata.version(package))


def main(names: list[str]) -> None:
    """Write a line of JSON with the checks of each of `names`."""
    for name in names:
        answer: dict[str, Any] = {"probe": name, "checks": [c.to_dict() for c in probe(name)]}
        sys.stdout.write(f"\n{json.dumps(answer)}\n")  # begin on a new line: a package may have printed half of one
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
