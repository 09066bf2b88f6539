"""An export is only an export once it has answered like its source. Shapes: B batch, K classes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import exports


@dataclass(frozen=True)
class Proof:
    """What the comparison of the file with its source found, on `inputs` real inputs."""

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
    more than `tolerance`; otherwise what was there before stays as it was.

    Raises:
        InputError: the model cannot be written in this format, or the folder is not there.
        MachineError: the format needs an extra that is not installed.
    """
    entry = exports.get(format_name)
    inputs = [*batches]
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder", "expected one for --out")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    model = model.cpu().float().eval()
    try:
        # Two samples: a batch of one would be taken for a constant by the tracers.
        example = (inputs[0][:1].repeat(2, *(1,) * (inputs[0].dim() - 1)).contiguous(),)
        with torch.no_grad():
            entry(model, example, temporary, carry)
        run = entry.meta["run"](temporary, build)
        proof = _compare(run, model, inputs, temporary, path, format_name, tolerance)
        if proof.passed:
            temporary.replace(path)
            beside = {**carry, "file": path.name, "proof": proof.to_dict()}
            path.with_name(path.name + ".json").write_text(json.dumps(beside, indent=2) + "\n", encoding="utf-8")
        return proof
    finally:
        temporary.unlink(missing_ok=True)


def _compare(
    run: Callable[[Tensor], Tensor],
    model: nn.Module,
    inputs: list[Tensor],
    file: Path,
    path: Path,
    format_name: str,
    tolerance: float,
) -> Proof:
    """Whole batches, and the first picture alone: a batch size that was baked in fails here."""
    with torch.inference_mode():
        pairs = [(model(x), torch.as_tensor(run(x.contiguous()))) for x in [*inputs, inputs[0][:1]]]
    ours, theirs = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
    difference = (ours - theirs).abs()
    largest = float(difference.max())
    return Proof(
        passed=largest <= tolerance,  # a NaN is not
        path=str(path),
        format=format_name,
        inputs=sum(len(x) for x in inputs),
        largest_difference=largest,
        mean_difference=float(difference.mean()),
        equal_answers=float((ours.argmax(1) == theirs.argmax(1)).float().mean()),
        tolerance=tolerance,
        bytes=file.stat().st_size,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )
