"""What ``env-check --require`` asks for: names of checks and extras, and amounts such as ``memory>=16GB``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bigmodel_cli.core.errors import InputError, nearest
from bigmodel_cli.core.extras import extras, install_line
from bigmodel_cli.engine.device.check import Check

NAMES = ("python", "cpu", "torch", "torchvision", "cuda", "driver", "cudnn", "gpu", "bf16", "compile", "disk",
         "memory", "data", "network")  # fmt: skip
"""What --require accepts, besides the extras and their packages."""
UNITS = {"": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30,
         "TIB": 2.0**40}  # fmt: skip
COMPARE: dict[str, Callable[[tuple[float, ...], tuple[float, ...]], bool]] = {
    ">=": lambda a, b: a >= b, "<=": lambda a, b: a <= b, "==": lambda a, b: a == b,
    ">": lambda a, b: a > b, "<": lambda a, b: a < b,
}  # fmt: skip
SIZES, COUNTS = ("memory", "disk"), ("gpu", "cpu")


@dataclass(frozen=True)
class Requirement:
    """A check that must pass and, with `sign`, have an amount: bytes, a count, or a version in parts."""

    name: str
    sign: str = ""
    amount: tuple[float, ...] = ()
    text: str = ""

    def holds(self, check: Check) -> bool:
        """Whether `check`, which is of this name, meets it."""
        if not self.sign:
            return check.status == "pass"
        found = _version(check.value) if self.name not in (*SIZES, *COUNTS) else (check.amount,)
        if None in found or not found:
            return False
        numbers = tuple(float(part) for part in found if part is not None)
        # 2.11.3 is 2.11, as pip's == 2.11.* says; and 2.11.0 is not more than 2.11.
        width = len(self.amount) if self.sign in ("==", "<=") else max(len(numbers), len(self.amount))
        return COMPARE[self.sign](_padded(numbers, width), _padded(self.amount, width))


def read_requirements(text: str | None) -> list[Requirement]:
    """``--require``, in order, before any check is run.

    Raises:
        InputError: there is no check of that name, or an amount cannot be read.
    """
    return [_read(part.strip()) for part in (text or "").split(",") if part.strip()]


def _read(part: str) -> Requirement:
    match = re.fullmatch(r"([\w.-]+)\s*(?:(>=|<=|==|>|<)\s*(\S+))?", part)
    name = match[1] if match else re.split(r"[<>=]", part)[0]
    packages = {package for found in extras().values() for package in found}
    known = {*NAMES, *extras(), *packages}
    name = name if name in known else name.replace("-", "_")
    if match is None or name not in known:
        raise InputError(f"--require {part}: no such check", nearest(name, known), hint="bigmodel env-check")
    if match[2] is None:
        return Requirement(name, text=part)
    if name in extras() and name not in packages:
        raise InputError(f"--require {part}: {name} is an extra of several packages", "expected a package of it")
    return Requirement(name, match[2], _amount(name, match[3], part), part)


def _amount(name: str, text: str, part: str) -> tuple[float, ...]:
    if name in SIZES:
        size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)", text.upper())
        unit = (size[2] if size[2].endswith("B") or not size[2] else size[2] + "B") if size else "?"
        if size is None or unit not in UNITS:
            raise InputError(f"--require {part}", "expected an amount such as 16GB", f"--require '{name}>=16GB'")
        return (float(size[1]) * UNITS[unit],)
    numbers = _version(text)
    if not numbers or (name in COUNTS and len(numbers) > 1):
        kind = "a number" if name in COUNTS else "a version such as 2.11"
        raise InputError(f"--require {part}", f"expected {kind}", f"--require '{name}>=1'")
    return numbers


def _padded(numbers: tuple[float, ...], width: int) -> tuple[float, ...]:
    return (*numbers, *(0.0,) * (width - len(numbers)))[:width]


def _version(text: str) -> tuple[float, ...]:
    """``2.11.0+cpu`` as (2, 11, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(float(part) for part in match[0].split(".")) if match else ()


def required(found: Sequence[Check], wanted: Sequence[Requirement]) -> list[Check]:
    """`found`, where every check that does not meet what is required of it is a failure.

    ``gpu`` means every GPU, ``onnx`` everything the extra installs. A required check that does not apply to this
    machine (cuDNN without CUDA) is added as a failure.
    """
    checks = list(found)
    for requirement in wanted:
        whole = not requirement.sign  # onnx is an extra; onnx>=1.18 is the package
        for name in extras().get(requirement.name, (requirement.name,)) if whole else (requirement.name,):
            checks = _apply(checks, replace(requirement, name=name))
    return checks


def _apply(checks: list[Check], requirement: Requirement) -> list[Check]:
    name = requirement.name
    own = [check for check in checks if check.name.split()[0] == name]
    if name == "gpu" and requirement.sign:
        counted = Check("gpu", "pass", f"{len(own)} GPUs", "see the cuda check", amount=float(len(own)))
        met = requirement.holds(counted)
        return checks if met else [*checks, replace(counted, status="fail", value=f"{len(own)}; {requirement.text}")]
    if not own:
        return [*checks, Check(name, "fail", "not on this machine", _remedy(name))]
    return [check if check not in own or requirement.holds(check) else _failed(check, requirement) for check in checks]


def _failed(check: Check, requirement: Requirement) -> Check:
    asked = f"; required: {requirement.text}" if requirement.sign else ""
    fix = check.fix or _remedy(requirement.name)
    if requirement.sign and requirement.name not in (*SIZES, *COUNTS):
        fix = f"pip install '{requirement.text}'"
    return replace(check, status="fail", value=check.value + asked, fix=fix)


def _remedy(name: str) -> str:
    owners = [extra for extra, packages in extras().items() if name in packages]
    if owners:
        return install_line(min(owners, key=lambda owner: len(extras()[owner])))
    return {
        "memory": "a machine with more memory, or close programs",
        "disk": "free some space, or write elsewhere with --out",
        "cpu": "a machine with more cores",
    }.get(name, "see the cuda check")
