"""Prove an export: it is published only if its outputs match its source's. Shapes: B batch, K classes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bigmodel_cli
from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.core.processes.call_limit import bounded
from bigmodel_cli.core.registry import Entry, exports
from bigmodel_cli.core.types import Task, finite
from bigmodel_cli.export import folder as layout
from bigmodel_cli.export.checksums import SUMS, digests, sums_text
from bigmodel_cli.export.compare import Differences, bootstrap_metrics, compare, rounding
from bigmodel_cli.export.example import example_script, run_example
from bigmodel_cli.export.folder import first_line
from bigmodel_cli.export.latency import measure_latency
from bigmodel_cli.export.model_card import model_card
from bigmodel_cli.export.pixels import to_pixels
from bigmodel_cli.export.publish import check_target, draft, publish, write_error
from bigmodel_cli.export.quiet import quiet
from bigmodel_cli.export.resized_samples import compare_other_sizes
from bigmodel_cli.export.subject import Subject

TOLERANCE = 1e-4
"""Maximum difference of a logit for a format that computes in fp32."""

Write = Callable[[nn.Module, tuple[Tensor, ...], Path, dict[str, Any]], object]
"""Writes a model, traced on an example, to a path, with optional metadata (see `Subject.carry`)."""


@dataclass(frozen=True)
class Proof:
    """The result of comparing an export with its source on `inputs` real inputs.

    Args:
        largest_difference: over every logit of every batch, including extra batch sizes.
        equal_answers: the fraction of inputs with equal top-1 predictions.
        metrics: of the checkpoint and the export, each with its 95% interval.
        speed: by name and batch size, with the number of threads.
        size: bytes of the checkpoint's weights, and of the export's files.
        files: SHA-256 of each model file.
        other_sizes: with preprocessing in the graph, the comparison on images of other sizes.
        example: the output of ``example.py``; None if there is none for this kind of input.
        further: what the format itself has measured, such as the recall of an index.
    """

    passed: bool
    path: str
    format: str
    inputs: int
    largest_difference: float
    mean_difference: float
    equal_answers: float
    tolerance: float
    metrics: Mapping[str, Any]
    speed: Mapping[str, Any]
    size: Mapping[str, int]
    files: Mapping[str, str]
    write_seconds: float
    other_sizes: Mapping[str, Any] | None = None
    example: Mapping[str, Any] | None = None
    further: Mapping[str, Any] | None = None
    failed: Sequence[str] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        return finite(asdict(self))  # type: ignore[no-any-return]


def prove(
    subject: Subject,
    format_name: str,
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    tolerance: float | None = None,
    overwrite: bool = False,
    seconds: float = 1.0,
    write: Write | None = None,
) -> Proof:
    """Export `subject` to the folder `out`, and compare both on its real inputs.

    The folder gets its final name only if no logit differs by more than `tolerance` and its
    example gives the same result. Otherwise whatever was at `out` is left unchanged.

    Args:
        tolerance: maximum difference of a logit; None: the format's own, 1e-4 for fp32.
        overwrite: replace an existing export.
        seconds: how long to time both at each batch size.
        write: writes the model file in place of the format, which then only runs it.

    Raises:
        InputError: there are no inputs, `out` is not usable, or the model cannot be written in this format.
        MachineError: the format needs an extra that is not installed, or the folder is not writable.
        BigmodelError: the model was written but does not run.
    """
    entry = exports.get(format_name)
    if not any(len(batch["index"]) for batch in subject.raw):
        raise InputError("no inputs to compare the export on", "expected at least one")
    if subject.pixels and not entry.meta["runtime"].answers:
        raise InputError(f"--with-preprocessing: {format_name} holds weights and no graph", hint="--format onnx")
    if subject.pixels:
        to_pixels(subject.raw[0], subject.task.spec)  # raises if they are not images
    check_target(out, overwrite)
    tolerance = entry.meta.get("tolerance", TOLERANCE) if tolerance is None else tolerance
    options = dict(options or {})
    write = write or (lambda model, example, path, carry: entry(model, example, path, carry, **options))
    with draft(out) as new:
        seconds_written = _write(entry, write, subject, new, out)
        _describe(entry, subject, new, out, options)
        proof = _proven(entry, subject, new, out, tolerance, seconds, seconds_written)
        if proof.passed:
            _text(new / layout.PROOF, _json(proof.to_dict()), out)
            _text(new / layout.CARD, model_card(layout.read_folder(new)), out)
            _text(new / SUMS, sums_text(new), out)
            publish(new, out)
        return proof


def _write(entry: Entry, write: Write, subject: Subject, new: Path, out: Path) -> float:
    """Write the model file; returns the seconds it took."""
    clock = time.perf_counter()
    try:
        with torch.no_grad(), quiet(), bounded():
            carry = subject.carry(entry.meta.get("carries", ()))
            write(subject.graph(), subject.example(), new / (layout.MODEL + entry.meta["suffix"]), carry)
    except OSError as error:
        raise write_error(out, error) from error
    except (RuntimeError, ValueError) as error:  # tracers and serializers raise subclasses of these
        what = f"the model cannot be written as {entry.name}: {first_line(error)}"
        raise InputError(what, hint="another --format") from error
    return time.perf_counter() - clock


def _describe(entry: Entry, subject: Subject, new: Path, out: Path, options: Mapping[str, Any]) -> None:
    """Write the folder's other files, except for the proof and the model card."""
    about = {
        "format": entry.name,
        "options": options,
        "with_preprocessing": subject.pixels,
        **subject.about,
        "checksums": SUMS,
        "made_by": f"bigmodel {bigmodel_cli.__version__}, torch {torch.__version__}",
    }
    preprocess = subject.preprocessing(fixed=not _any_size(entry))
    _text(new / layout.LABELS, _json(list(subject.task.spec.classes)), out)
    _text(new / layout.PREPROCESS, _json(preprocess), out)
    _text(new / layout.EXPORT, _json(about), out)
    _text(new / layout.PROOF, "{}\n", out)
    script = example_script(entry, subject.task, preprocess)
    if script is not None:
        _text(new / layout.EXAMPLE, script, out)
    _text(new / SUMS, sums_text(new), out)  # again when all files are there; the example checks its own


def _proven(
    entry: Entry, subject: Subject, new: Path, out: Path, tolerance: float, seconds: float, written: float
) -> Proof:
    file = new / (layout.MODEL + entry.meta["suffix"])
    run = layout.load_model_file(entry, file, layout.read_folder(new).build)
    given = [tuple(x.numpy() for x in inputs) for inputs in subject.given]
    try:
        with bounded():
            found = compare(subject.model, run, subject.task, subject.prepared, given)
        sizes = compare_other_sizes(subject, run) if subject.pixels and _any_size(entry) else None
        speed = measure_latency({"checkpoint": (subject.model, subject.inputs[0]), "export": (run, given[0])}, seconds)
    except BigmodelError:
        raise
    except Exception as error:  # runtimes raise their own types, some derived directly from Exception
        raise BigmodelError(f"{out}: the {entry.name} file does not run: {first_line(error)}") from error
    failed = []
    if not found.largest <= tolerance:  # also true for NaN
        failed.append(f"a logit differs by {found.largest:.3g}, more than {tolerance:g}")
        if (own := rounding(subject.model, subject.inputs[0])) > tolerance:
            failed.append(f"the checkpoint's own rounding is {own:.3g}, fp32 beside fp64: --tolerance allows more")
    if sizes is not None and not sizes["largest_difference"] <= sizes["tolerance"]:
        apart = f"{sizes['largest_difference']:.3g}, more than {sizes['tolerance']:g}"
        failed.append(f"on images of other sizes a logit differs by {apart}")
    example = None if failed else run_example(entry, subject, new, run)
    failed += [] if example is None else example.pop("failed")
    proves = entry.meta.get("proves")
    with bounded():
        further = None if proves is None else proves(subject, run, new)
    failed += [] if further is None else further.pop("failed")
    weights = sum(t.numel() * t.element_size() for t in subject.model.state_dict().values())
    return Proof(
        passed=not failed,
        path=str(out),
        format=entry.name,
        inputs=found.inputs,
        largest_difference=found.largest,
        mean_difference=found.mean,
        equal_answers=found.equal_answers,
        tolerance=tolerance,
        metrics=_metrics(subject.task, found),
        speed=speed,
        size={"checkpoint": weights, "export": sum(f.stat().st_size for f in layout.model_files(new))},
        files=digests(new, layout.model_files(new)),
        write_seconds=written,
        other_sizes=sizes,
        example=example,
        further=further,
        failed=failed,
    )


def _any_size(entry: Entry) -> bool:
    """Whether the format accepts images of any size."""
    return entry.meta.get("sizes") != "fixed"


def _metrics(task: Task, found: Differences) -> dict[str, Any]:
    return {"checkpoint": bootstrap_metrics(task, found.ours), "export": bootstrap_metrics(task, found.theirs)}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _text(file: Path, text: str, out: Path) -> None:
    try:
        file.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path in it may be no UTF-8
    except OSError as error:
        raise write_error(out, error) from error
