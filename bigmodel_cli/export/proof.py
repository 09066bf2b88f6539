"""An export is only an export once it has answered like its source. Shapes: B batch, K classes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import BigmodelError, InputError, MachineError
from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.quiet import quiet

SIZES = (1, 3)
"""Batch sizes that are tried beside those of the inputs: one that was baked into the file fails here."""


@dataclass(frozen=True)
class Proof:
    """What the comparison of the file with its source found, on `inputs` real inputs.

    `largest_difference` is over every logit of every batch, the extra batch sizes
    included; the mean and the share of equal top-1 answers count each input once.
    """

    passed: bool
    path: str
    format: str
    inputs: int
    largest_difference: float
    mean_difference: float
    equal_answers: float
    tolerance: float
    bytes: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def export_and_prove(
    format_name: str,
    model: nn.Module,
    batches: Iterable[Tensor],
    path: Path,
    carry: dict[str, Any],
    build: Callable[[], nn.Module],
    tolerance: float = 1e-4,
) -> Proof:
    """Write `model` to `path` in a format, and compare both on `batches` of prepared inputs (B,...).

    The file gets its final name, and a JSON beside it, only when no logit differs by
    more than `tolerance`; otherwise what was there before stays as it was. `model`
    itself is moved to the CPU, to fp32 and to eval mode.

    Raises:
        InputError: there are no inputs, the folder is not there, or the model cannot be written in this format.
        MachineError: the format needs an extra that is not installed, or the file cannot be written.
        BigmodelError: the file was written but does not run.
    """
    entry = exports.get(format_name)
    inputs = [x.cpu().contiguous() for x in batches if len(x)]
    if not inputs:
        raise InputError("no inputs to compare the export on", "expected at least one")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder", "expected one for --out")
    if path.is_dir():
        raise InputError(f"{path}: a folder", "expected the name of a file")
    # The suffix stays: some loaders choose by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    model = model.cpu().float().eval()
    try:
        # Two samples: a batch of one would be taken for a constant by the tracers.
        example = (inputs[0][:1].repeat(2, *(1,) * (inputs[0].dim() - 1)),)
        _write(entry, model, example, temporary, carry, path)
        proof = _compare(entry.meta["run"], build, model, inputs, temporary, path, format_name, tolerance)
        if proof.passed:
            _publish(temporary, path, {**carry, "file": path.name, "proof": proof.to_dict()})
        return proof
    finally:
        temporary.unlink(missing_ok=True)


def _write(
    entry: Any, model: nn.Module, example: tuple[Tensor, ...], file: Path, carry: dict[str, Any], path: Path
) -> None:
    try:
        with torch.no_grad(), quiet():
            entry(model, example, file, carry)
    except OSError as error:
        raise MachineError(
            f"{path}: cannot write: {error.strerror or error}; {shutil.disk_usage(path.parent).free} bytes free",
            hint="give another --out",
        ) from error
    except (RuntimeError, ValueError) as error:  # the tracers' and serialisers' own errors are kinds of these
        raise InputError(
            f"the model cannot be written as {entry.name}: {_first_line(error)}", hint="another --format"
        ) from error


def _compare(
    open_file: Callable[[Path, Callable[[], nn.Module]], Callable[[Tensor], Tensor]],
    build: Callable[[], nn.Module],
    model: nn.Module,
    inputs: list[Tensor],
    file: Path,
    path: Path,
    format_name: str,
    tolerance: float,
) -> Proof:
    try:
        run = open_file(file, build)
        differences, equal = zip(*(_differ(run, model, x) for x in inputs), strict=True)
        extra = [_differ(run, model, inputs[0][:size])[0] for size in SIZES]
    except BigmodelError:
        raise
    except Exception as error:  # runtimes raise kinds of their own, some of them straight from Exception
        raise BigmodelError(f"{path}: the {format_name} file does not run: {_first_line(error)}") from error
    difference = torch.cat([d.flatten() for d in differences])
    largest = float(torch.cat([difference, *(d.flatten() for d in extra)]).max())
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Proof(
        passed=largest <= tolerance,  # a NaN is not
        path=str(path),
        format=format_name,
        inputs=sum(len(x) for x in inputs),
        largest_difference=largest,
        mean_difference=float(difference.mean()),
        equal_answers=float(torch.cat([e.flatten() for e in equal]).double().mean()),
        tolerance=tolerance,
        bytes=file.stat().st_size,
        sha256=digest,
    )


def _differ(run: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute differences of the logits (B,K), and whether the top-1 answers are equal (B,);
    a language model has (B,T,K) and (B,T).

    Raises:
        ValueError: the shapes differ, which a subtraction might hide by broadcasting.
    """
    with torch.inference_mode():
        ours, theirs = model(x), torch.as_tensor(run(x))
    if ours.shape != theirs.shape:
        raise ValueError(f"a batch of {len(x)} gives {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
    return (ours - theirs).abs(), ours.argmax(-1) == theirs.argmax(-1)


def _publish(temporary: Path, path: Path, beside: dict[str, Any]) -> None:
    """Give the file its final name, and write its JSON: each whole and durable, or the old one stays.

    Raises:
        MachineError: the disk is full or cannot be written.
    """
    description = path.with_name(path.name + ".json")
    draft = description.with_name(f".{description.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(json.dumps(beside, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(draft, temporary)  # safetensors writes files that only their owner may read
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        draft.replace(description)
    except OSError as error:
        raise MachineError(f"{path}: cannot write: {error.strerror or error}", hint="give another --out") from error
    finally:
        draft.unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    """Of what began it: exporters wrap the reason in pages of advice."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
