"""The reports of ``bigmodel eval`` for several labels or numbers per sample. Shapes: N samples, K outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import reports
from bigmodel_cli.core.types import Source
from bigmodel_cli.insight.class_match import match_classes
from bigmodel_cli.insight.reports import MAX_ROWS_SHOWN, Names, Outputs, Report, Table, headline, plain, shorten
from bigmodel_cli.metrics.intervals import measure
from bigmodel_cli.tasks.answers import thresholds

PER_LABEL = ("mean_average_precision", "micro_f1")
PER_NUMBER = ("mean_absolute_error", "root_mean_squared_error", "r2", "spearman")


@reports.register()
def labels(task: Any, data: Any, source: Source, outputs: Outputs, wrong: int, names: Names) -> Report:
    """Mean average precision, F1, Hamming loss and calibration, each label by itself, and mistakes."""
    out = _finite(outputs())
    shared = [k for k, name in enumerate(task.spec.classes) if name in set(data.classes)]
    classes = [task.spec.classes[k] for k in shared]
    per_sample = {"loss": out["loss"].double()}
    kept = {**per_sample, **{k: out[k][:, shared] for k in ("logits", "targets", "decisions")}}
    found = measure(names, kept)
    limits = thresholds(task.spec)
    rows = [_label_row(name, limits[k], {key: kept[key][:, [i]] for key in ("logits", "targets", "decisions")})
            for i, (k, name) in enumerate(zip(shared, classes, strict=True))]  # fmt: skip
    mistakes = _wrong_labels(kept, classes, source, wrong)
    cells = [
        (r["label"], f"{r['threshold']:.4f}", *("-" if r[k] is None else f"{r[k]:.4f}" for k in SHOWN),
         f"{r['support']:,}") for r in rows
    ]  # fmt: skip
    columns = ("label", "threshold", "precision", "recall", "F1", "average precision", "samples")
    tables: list[Table] = [headline(found), (None, columns, cells[:MAX_ROWS_SHOWN], True)]
    if mistakes:
        shown: list[tuple[str, ...]] = [
            (m["name"], " | ".join(m["missed"]) or "-", " | ".join(m["added"]) or "-") for m in mistakes
        ]
        tables.append(("wrong, most labels first", ("sample", "missed", "added"), shown, False))
    values = {
        "samples": len(out["loss"]), "headline": plain(found), "per_label": rows, "wrong": mistakes,
        "wrong_count": int(_errors(kept).any(1).sum()),
    }  # fmt: skip
    return Report(values, tables, _match_notes(task, data))


SHOWN = ("precision", "recall", "f1", "average_precision")


def _label_row(name: str, threshold: float, out: Mapping[str, Tensor]) -> dict[str, Any]:
    true, decided, known = out["targets"] == 1, out["decisions"], out["targets"] >= 0
    hit, support, said = (int(x.sum()) for x in (true & decided, true, decided & known))
    area = measure(PER_LABEL[:1], out, resamples=0)
    return {
        "label": name,
        "threshold": threshold,
        "precision": hit / said if said else None,
        "recall": hit / support if support else None,
        "f1": 2 * hit / (said + support) if said + support else None,
        "average_precision": area[PER_LABEL[0]].value if area else None,
        "support": support,
    }


def _errors(out: Mapping[str, Tensor]) -> Tensor:
    return (out["decisions"] != (out["targets"] == 1)) & (out["targets"] >= 0)


def _wrong_labels(out: Mapping[str, Tensor], classes: Sequence[str], source: Source, most: int) -> list[dict[str, Any]]:
    """The samples with most wrong labels."""
    errors = _errors(out)
    order = errors.sum(1).argsort(descending=True, stable=True)[:most].tolist()
    found = []
    for i in order:
        places = errors[i].nonzero().flatten().tolist()
        if places:
            missed = [classes[k] for k in places if out["targets"][i, k] == 1]
            added = [classes[k] for k in places if out["targets"][i, k] != 1]
            found.append({"name": source.name(i), "missed": missed, "added": added})
    return found


@reports.register()
def numbers(task: Any, data: Any, source: Source, outputs: Outputs, wrong: int, names: Names) -> Report:
    """Errors in the units of the data, R2 and rank correlation, each number by itself, and the largest errors."""
    out = _finite(outputs())
    shared = [k for k, name in enumerate(task.spec.classes) if name in set(data.classes)]
    classes = [task.spec.classes[k] for k in shared]
    kept = {"loss": out["loss"].double(), **{k: out[k][:, shared] for k in ("logits", "predictions", "values")}}
    found = measure(names, kept)
    rows = []
    for i, name in enumerate(classes):
        one = measure(PER_NUMBER, {k: kept[k][:, [i]] for k in ("predictions", "values")}, resamples=0)
        rows.append({"number": name, **{key: one[key].value if key in one else None for key in PER_NUMBER}})
    tables: list[Table] = [headline(found)]
    if len(classes) > 1:
        cells = [(r["number"], *("-" if r[k] is None else f"{r[k]:.4g}" for k in PER_NUMBER)) for r in rows]
        tables.append((None, ("number", *PER_NUMBER), cells[:MAX_ROWS_SHOWN], True))
    worst = kept["loss"].argsort(descending=True, stable=True)[:wrong].tolist()
    mistakes: list[dict[str, Any]] = [
        {"name": source.name(i), "true": dict(zip(classes, kept["values"][i].tolist(), strict=True)),
         "predicted": dict(zip(classes, kept["predictions"][i].tolist(), strict=True))} for i in worst
    ]  # fmt: skip
    if mistakes:
        shown: list[tuple[str, ...]] = [(m["name"], _text(m["true"]), _text(m["predicted"])) for m in mistakes]
        tables.append(("largest errors", ("sample", "true", "predicted"), shown, False))
    values = {"samples": len(out["loss"]), "headline": plain(found), "per_number": rows, "wrong": mistakes}
    return Report(values, tables, _match_notes(task, data))


def _text(numbers: Mapping[str, float]) -> str:
    values = [f"{value:.5g}" for value in numbers.values()]
    return ", ".join(values if len(values) == 1 else (f"{n} {v}" for n, v in zip(numbers, values, strict=True)))


def _finite(out: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    broken = int((~torch.isfinite(out["logits"])).any(1).sum())
    if broken:
        raise InputError(
            f"the model returns NaN for {broken} of {len(out['logits'])} samples", "expected finite numbers"
        )
    return out


def _match_notes(task: Any, data: Any) -> list[str]:
    match = match_classes(task.spec.classes, data.classes)
    notes = [f"outputs of the model that are not in the data: {shorten(match.missing)}"] if match.missing else []
    return notes + ([f"labels unknown to the model, not measured: {shorten(match.unseen)}"] if match.unseen else [])
