"""What cross-validation says: a figure with an honest interval, and every sample's answer by a model that never saw it.

Shapes: N samples, C outputs; K folds.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from torch import Tensor

from bigmodel_cli.core.output_values import uncalibrated
from bigmodel_cli.metrics.intervals import Figure
from bigmodel_cli.metrics.reading import bounds_of
from bigmodel_cli.tasks.answers import answer_of, thresholds

HOW = (
    "mean over the folds, with the 95% interval of Student's t for the variance that Nadeau and Bengio (2003) corrected"
    " for runs that share training samples: s^2 (1/K + 1/(K-1))"
)
VAL = "val"


def corrected(name: str, values: Sequence[float]) -> Figure:
    """The mean of a metric over the K folds and its 95% interval; see :data:`HOW`.

    The usual interval, from s^2 / K or from all samples together, takes the folds for independent runs; it is too
    narrow, since any two share most of their training samples.
    """
    from scipy.stats import t

    count = len(values)
    mean = sum(values) / count
    variance = sum((v - mean) ** 2 for v in values) / (count - 1)
    half = float(t.ppf(0.975, count - 1)) * math.sqrt(variance * (1 / count + 1 / (count - 1)))
    least, most = bounds_of(name)
    return Figure(mean, max(least, mean - half), min(most, mean + half))


@dataclass(frozen=True)
class Part:
    """Answers for samples of train: those that run `fold` held out; or val, with the mean of all runs."""

    fold: str
    places: Sequence[int]
    """(N,) the rows in the train split of the data, or in its val split where that is one of its own."""
    names: Sequence[str]
    outputs: Mapping[str, Tensor]
    values: numpy.ndarray
    """(N,C): probabilities, scores, or numbers in the units of the data."""


def values_of(task: Any, outputs: Mapping[str, Tensor]) -> numpy.ndarray:
    """(N,C) the answers that `outputs` of the task stand for; class logits are divided by a temperature already."""
    found: numpy.ndarray = answer_of(task).values(outputs["logits"].double().numpy(), uncalibrated(task.spec))
    return found


def out_of_fold_csv(task: Any, parts: Sequence[Part]) -> str:
    """A table with a row for each sample, in the order of the data: fold, label, prediction, and all C values."""
    held = io.StringIO()
    writer = csv.writer(held, lineterminator="\n")
    kind, classes = task.answers, task.spec.classes
    word = {"classes": "probability", "labels": "probability", "numbers": "predicted"}[kind]
    answers = [f"true {name}" for name in classes] if kind == "numbers" else ["label", "prediction"]
    writer.writerow(["row", "name", "fold", *answers, *(f"{word} {name}" for name in classes)])
    rows = [(part.fold == VAL, place, i, part) for part in parts for i, place in enumerate(part.places)]
    for _, place, i, part in sorted(rows, key=lambda row: row[:3]):
        values = [f"{v:.6g}" for v in part.values[i].tolist()]
        writer.writerow([place, part.names[i], part.fold, *_answers(kind, task.spec, part, i), *values])
    return held.getvalue()


def _answers(kind: str, spec: Any, part: Part, i: int) -> Iterator[str]:
    """The cells of one sample before its values."""
    classes, out, values = spec.classes, part.outputs, part.values[i]
    if kind == "classes":
        label = int(out["label"][i])
        yield classes[label] if label >= 0 else ""
        yield classes[int(values.argmax())]
    elif kind == "labels":
        yield "|".join(c for c, held in zip(classes, out["targets"][i].tolist(), strict=True) if held == 1)
        yield "|".join(c for c, v, t in zip(classes, values, thresholds(spec), strict=True) if v >= t)
    else:
        yield from (f"{v:.6g}" for v in out["values"][i].tolist())
