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
from bigmodel_cli.engine.device.hardware import cpu_flags

MEND = "mend torch first"
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
"""What is said, and what to do, where a probe crashes or never ends."""


def probe(name: str) -> list[Check]:
    """What there is to say about `name`, one of :data:`PROBES`. Raises nothing."""
    try:
        if name in ("torch", "torchvision"):
            return [Check(name, "pass", str(importlib.import_module(name).__version__))]
        if name in ("cuda", "bf16"):
            return cuda() if name == "cuda" else bf16()
        return [extra(name)]
    except Exception as error:  # a broken binary raises OSError, RuntimeError, AttributeError, ...
        status, fix = PROBES[name]
        if name in ("cuda", "bf16"):
            return [Check(name, status, f"cannot be tested: {reason(error)}", MEND)]
        return [Check(name, status, f"does not import: {reason(error)}", fix)]


def reason(error: Exception) -> str:
    """The first line of the error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__


def cuda() -> list[Check]:
    """CUDA, cuDNN and each GPU with its memory, where there is one."""
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


def bf16() -> list[Check]:
    """A bf16 product is done and compared; whether the processor has it in hardware decides its speed."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.arange(64.0, device=device).view(8, 8) / 64
    got = (x.bfloat16() @ x.bfloat16()).float()
    if not torch.allclose(got, x @ x, rtol=0.02, atol=0.02):
        return [Check("bf16", "warn", f"a product on {device} is wrong", "--precision fp32")]
    if device == "cuda":
        fast = torch.cuda.get_device_capability() >= (8, 0)
    else:
        fast = bool({"avx512_bf16", "amx_bf16", "bf16"} & cpu_flags()[1])
    how = "in hardware" if fast else "emulated, so slow"
    return [Check("bf16", "pass", f"a product on {device} is right ({how})")]


def unloaded(package: str) -> Check | None:
    """What can be said of an optional package without importing it; None where there is nothing."""
    owners = {name: len(packages) for name, packages in extras().items() if package in packages}
    name = min(owners, key=lambda owner: owners[owner], default=None)  # the extra that installs least beside it
    if name is None:
        return None
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Check(package, "warn", "not installed (optional)", f"pip install 'bigmodel[{name}]'")
    if package == "coremltools" and sys.platform != "darwin":
        return Check(package, "warn", f"{version}, but Core ML runs on macOS alone", "export coreml on a Mac")
    return None if package not in SLOW and _has_binaries(package) else Check(package, "pass", version)


def _has_binaries(package: str) -> bool:
    """Whether it holds foreign binaries, which may be for another machine: only importing it tells."""
    return any(file.suffix in BINARIES for file in metadata.files(package) or ())


def extra(package: str) -> Check:
    """An optional package: its version, and that it imports."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it reports each import
    importlib.import_module(package)
    return Check(package, "pass", metadata.version(package))


def main(names: list[str]) -> None:
    """Answer for each of `names`, a line each."""
    for name in names:
        answer: dict[str, Any] = {"probe": name, "checks": [c.to_dict() for c in probe(name)]}
        sys.stdout.write(f"\n{json.dumps(answer)}\n")  # the first: a package may have left half a line
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
