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
from bigmodel_cli.export.shapes import tokens

SIZES = (1, 3)
"""Batch sizes that are tried beside those of the inputs: one that was baked into the file fails here."""
DESCRIPTION = "bigmodel.json"  # in an exported folder; of a file it stands beside it
Inputs = tuple[Tensor, ...]
"""What the model takes, in its order, first dimension B."""


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
    batches: Iterable[Tensor | Inputs],
    path: Path,
    carry: dict[str, Any],
    build: Callable[[], nn.Module],
    tolerance: float = 1e-4,
) -> Proof:
    """Write `model` to `path` in a format, and compare both on `batches` of prepared inputs (B,...).

    The file (or folder, where the format is one) gets its final name, and a JSON beside it, only when no
    logit differs by more than `tolerance`; otherwise what was there before stays as it was. `model`
    itself is moved to the CPU, to fp32 and to eval mode.

    Raises:
        InputError: there are no inputs, the folder is not there, or the model cannot be written in this format.
        MachineError: the format needs an extra that is not installed, or the file cannot be written.
        BigmodelError: the file was written but does not run.
    """
    entry = exports.get(format_name)
    folder = entry.meta.get("folder", False)
    whole = [x if isinstance(x, tuple) else (x,) for x in batches]
    inputs = [tuple(x.cpu().contiguous() for x in batch) for batch in whole if len(batch[0])]
    if not inputs:
        raise InputError("no inputs to compare the export on", "expected at least one")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder", "expected one for --out")
    if path.is_dir() and not (folder and (path / DESCRIPTION).is_file()):
        raise InputError(f"{path}: a folder", f"expected the name of a {'new folder' if folder else 'file'}")
    # The suffix stays: some loaders choose by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    model = model.cpu().float().eval()
    try:
        # Two samples: a batch of one would be taken for a constant by the tracers.
        example = tuple(x[:1].repeat(2, *(1,) * (x.dim() - 1)) for x in inputs[0])
        _write(entry, model, example, temporary, carry, path)
        proof = _compare(entry.meta["run"], build, model, inputs, temporary, path, format_name, tolerance)
        if proof.passed:
            (_publish_folder if folder else _publish)(
                temporary, path, {**carry, "file": path.name, "proof": proof.to_dict()}
            )
        return proof
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
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
    open_file: Callable[[Path, Callable[[], nn.Module]], Callable[..., Tensor]],
    build: Callable[[], nn.Module],
    model: nn.Module,
    inputs: list[Inputs],
    file: Path,
    path: Path,
    format_name: str,
    tolerance: float,
) -> Proof:
    try:
        run = open_file(file, build)
        differences, equal = zip(*(_differ(run, model, x) for x in inputs), strict=True)
        extra = [_differ(run, model, x)[0] for x in _others(inputs[0])]
    except BigmodelError:
        raise
    except Exception as error:  # runtimes raise kinds of their own, some of them straight from Exception
        raise BigmodelError(f"{path}: the {format_name} file does not run: {_first_line(error)}") from error
    difference = torch.cat([d.flatten() for d in differences])
    largest = float(torch.cat([difference, *(d.flatten() for d in extra)]).max())
    return Proof(
        passed=largest <= tolerance,  # a NaN is not
        path=str(path),
        format=format_name,
        inputs=sum(len(x[0]) for x in inputs),
        largest_difference=largest,
        mean_difference=float(difference.mean()),
        equal_answers=float(torch.cat([e.flatten() for e in equal]).double().mean()),
        tolerance=tolerance,
        bytes=sum(f.stat().st_size for f in _files(file)),
        sha256=_digest(file),
    )


def _others(inputs: Inputs) -> list[Inputs]:
    """Other batch sizes, and of tokens (B,T) another length: what was baked into the file fails on one of them."""
    sizes = [tuple(x[:size] for x in inputs) for size in SIZES]
    shorter = tuple(x[:, : max(x.shape[1] // 2, 1)] if tokens(x) else x for x in inputs)
    return [*sizes, shorter] if any(tokens(x) for x in inputs) else sizes


def _files(path: Path) -> list[Path]:
    """`path` itself, or the files in that folder."""
    return sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]


def _digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, over the names and digests of its files."""
    whole = hashlib.sha256()
    for file in _files(path):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if file == path:
            return digest
        whole.update(f"{file.relative_to(path)} {digest}\n".encode())
    return whole.hexdigest()


def _differ(run: Callable[..., Tensor], model: nn.Module, x: Inputs) -> tuple[Tensor, Tensor]:
    """Absolute differences of the logits (B,K), and whether the top-1 answers are equal (B,);
    a language model has (B,T,K) and (B,T).

    Raises:
        ValueError: the shapes differ, which a subtraction might hide by broadcasting.
    """
    with torch.inference_mode():
        ours, theirs = model(*x), torch.as_tensor(run(*x))
    if ours.shape != theirs.shape:
        raise ValueError(f"a batch of {len(x[0])} gives {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
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


def _publish_folder(temporary: Path, path: Path, beside: dict[str, Any]) -> None:
    """Give the folder its final name, its description in it; an export that was there makes room first.

    Raises:
        MachineError: the disk is full or cannot be written.
    """
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        (temporary / DESCRIPTION).write_text(json.dumps(beside, indent=2) + "\n", encoding="utf-8")
        for file in _files(temporary):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except OSError as error:
        if old.exists() and not path.exists():
            old.rename(path)
        raise MachineError(f"{path}: cannot write: {error.strerror or error}", hint="give another --out") from error
    shutil.rmtree(old, ignore_errors=True)


def _first_line(error: Exception) -> str:
    """Of what began it: exporters wrap the reason in pages of advice."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
