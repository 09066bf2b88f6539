"""What cross-validation says: a figure with an honest interval, and every sample's answer by a model that never saw it.

Shapes: N samples, C outputs; K folds.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from torch import Tensor

from bigmodel_cli.core.output_values import uncalibrated
from bigmodel_cli.metrics.intervals import Figure
from bigmodel_cli.metrics.reading import bounds_of
from bigmodel_cli.tasks.answers import answer_of

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
    places = [(part.fold == VAL, place, i, part) for part in parts for i, place in enumerate(part.places)]
    rows = [
        {"row": place, "name": part.names[i], "fold": part.fold, **_cells(task, part, i)}
        for _, place, i, part in sorted(places, key=lambda row: row[:3])
    ]
    writer = csv.DictWriter(held, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return held.getvalue()


def _cells(task: Any, part: Part, i: int) -> dict[str, str]:
    """What is true of one sample, by column, and its answer in the columns of ``predict --out``."""
    answer, classes, out = answer_of(task), task.spec.classes, part.outputs
    cells = answer.to_cells(answer.choose(part.values[i], task.spec, len(classes)), task.spec)
    told = {column: value if isinstance(value, str) else f"{value:.6g}" for column, value in cells.items()}
    if task.answers == "classes":
        label = int(out["label"][i])
        return {"label": classes[label] if label >= 0 else "", **told}
    if task.answers == "labels":
        held = [c for c, target in zip(classes, out["targets"][i].tolist(), strict=True) if target == 1]
        return {"label": "|".join(held), **told}
    true = {f"true {c}": f"{v:.6g}" for c, v in zip(classes, out["values"][i].tolist(), strict=True)}
    return true | {f"predicted {column}": value for column, value in told.items()}
