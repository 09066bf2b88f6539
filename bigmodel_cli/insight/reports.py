"""The reports of ``bigmodel eval`` by task: values for programs, tables for people. Shapes: N samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import reports
from bigmodel_cli.core.types import Source
from bigmodel_cli.insight.class_match import match_classes
from bigmodel_cli.insight.classification import classification_report
from bigmodel_cli.metrics.intervals import Figure, measure
from bigmodel_cli.metrics.reading import format_metric
from bigmodel_cli.tasks.answers import gives_probabilities

Table = tuple[str | None, Sequence[str], list[tuple[str, ...]], bool]
"""Title, columns, rows, and whether the columns after the first are numeric."""
Outputs = Callable[[], Mapping[str, Tensor]]
"""Runs the model over the split: the task's outputs, first dimension N."""
TOTALS = {"tokens": "count", "bytes": "bytes"}
Names = Sequence[str]
"""The registered metrics of the headline: the task's own, and those given with ``--metric``."""
MAX_CLASSES_SHOWN = 20
MAX_ROWS_SHOWN = 100
SCORES_NOTE = (
    "the outputs are scores, not probabilities: the loss is none of probabilities; --calibrate turns them into some"
)


@dataclass(frozen=True)
class Report:
    """`values` are plain, for ``--json``; the first of `tables` has the headline metrics."""

    values: dict[str, Any]
    tables: list[Table]
    notes: Sequence[str] = ()


@reports.register()
def classification(task: Any, data: Any, source: Source, outputs: Outputs, wrong: int, names: Names) -> Report:
    """Loss, accuracy, calibration, per-class metrics, confusion matrix and mistakes; classes are matched by name."""
    match = match_classes(task.spec.classes, data.classes)
    out = outputs()
    found = classification_report(
        out["logits"], out["label"], out["loss"], task.spec.classes, names=names, scores=not gives_probabilities(task)
    )
    if not found.samples:
        what = f"all {found.unseen:,} samples are of classes unknown to the model: {shorten(match.unseen)}"
        raise InputError(what, f"it knows {shorten(task.spec.classes)}", "bigmodel finetune")
    mistakes = [
        {"name": source.name(i), "true": t, "predicted": p, "confidence": c} for i, t, p, c in found.wrong[:wrong]
    ]
    figures = found.to_dict()
    tables = [headline(found.headline)]
    columns = ("precision", "recall", "f1")
    per_class = [
        (c["class"], *("-" if c[k] is None else f"{c[k]:.4f}" for k in columns), f"{c['support']:,}")
        for c in figures["per_class"]
    ]
    more = len(per_class) - MAX_ROWS_SHOWN
    if chosen := figures["selective"].get("at_coverage"):
        shares: list[tuple[str, ...]] = [
            (f"{r['coverage']:.0%}", f"{r['accuracy']:.2%}", f"{r['samples']:,}") for r in chosen
        ]
        tables.append(("accuracy on the most confident samples", ("share", "accuracy", "samples"), shares, True))
    tables.append((None, ("class", "precision", "recall", "F1", "samples"), per_class[:MAX_ROWS_SHOWN], True))
    classes = task.spec.classes
    if found.confusion is not None and len(classes) <= MAX_CLASSES_SHOWN:
        rows = [(c, *(str(n) if n else "·" for n in row)) for c, row in zip(classes, found.confusion, strict=True)]
        tables.append(("rows are true, columns predicted", ("", *classes), rows, True))
    elif found.confused:
        rows = [(t, p, f"{n:,}") for t, p, n in found.confused[:MAX_CLASSES_SHOWN]]
        tables.append(("confused most often", ("true", "predicted", "samples"), rows, False))
    if mistakes:
        tables.append(_mistakes_table(mistakes, gives_probabilities(task)))
    notes = [f"{more:,} more classes are in --json"] if more > 0 else []
    notes += [] if gives_probabilities(task) else [SCORES_NOTE]
    if match.missing:
        notes.append(f"classes of the model that are not in the data: {shorten(match.missing)}")
    if match.unseen:
        notes.append(f"classes unknown to the model, excluded from the metrics: {shorten(match.unseen)}")
    return Report({**figures, "wrong": mistakes}, tables, notes)


def _mistakes_table(mistakes: list[dict[str, Any]], probabilities: bool) -> Table:
    """The wrong predictions; where outputs are scores, ``confidence`` is renamed to what it is."""
    rows: list[tuple[str, ...]]
    if probabilities:
        rows = [(m["name"], m["true"], m["predicted"], f"{m['confidence']:.2%}") for m in mistakes]
        return "wrong, most confident first", ("sample", "true", "predicted", "confidence"), rows, False
    for mistake in mistakes:
        mistake["score"] = mistake.pop("confidence")
    rows = [(m["name"], m["true"], m["predicted"], f"{m['score']:.4g}") for m in mistakes]
    return "wrong, largest score first", ("sample", "true", "predicted", "score"), rows, False


@reports.register(lists_mistakes=False)
def perplexity(task: Any, data: Any, source: Source, outputs: Outputs, wrong: int, names: Names) -> Report:
    """Loss in nats per token, perplexity and bits per byte; intervals over windows of text."""
    out = outputs()
    found = measure(names, out)
    values = {"samples": len(out["nats"]), **{name: int(out[key].sum()) for name, key in TOTALS.items()}}
    return Report({**values, "headline": plain(found)}, [headline(found)])


def shorten(names: Sequence[str]) -> str:
    more = len(names) - MAX_CLASSES_SHOWN
    return ", ".join(names[:MAX_CLASSES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def plain(figures: Mapping[str, Figure]) -> dict[str, dict[str, float | None]]:
    return {name: figure.to_dict() for name, figure in figures.items()}


def headline(figures: Mapping[str, Figure]) -> Table:
    """The first table: each metric with its interval."""
    rows: list[tuple[str, ...]] = []
    for name, figure in figures.items():
        value, low, high = (format_metric(name, v) for v in (figure.value, figure.low, figure.high))
        rows.append((name, value, f"{low} .. {high}"))
    return None, ("metric", "value", "95% interval"), rows, True
