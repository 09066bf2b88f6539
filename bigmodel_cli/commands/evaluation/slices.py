"""``eval --by COLUMN``: the metrics for each value of a column of your own table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.evaluation.trust import MOST_SLICES, Evaluation, Extra
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.metrics.reading import format_interval, format_metric

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.commands.evaluation.measuring import SplitOfData

NONE = -1
"""Stands for the value of samples without one; hashes are not negative."""
FEW = 30
"""Samples of a slice below which its figures say little."""


def slices(found: Evaluation, column: str) -> Extra:
    """The first two metrics of the task for each value of `column`, the worst first.

    Raises:
        InputError: the data is no table, or has no such column, or the task's metrics need more than its outputs.
    """
    import torch

    from bigmodel_cli.core.registry import metrics
    from bigmodel_cli.metrics.intervals import measure, statistics_of

    measured = found.measured
    groups, names = _groups(measured, column)
    outputs: dict[str, Tensor] = {k: v for k, v in found.outputs.items() if isinstance(v, torch.Tensor)}
    if "label" in outputs:
        outputs = {k: v[found.outputs["label"] >= 0] for k, v in outputs.items()}
    of_sample = groups[outputs["index"]]
    wanted = list(statistics_of(measured.task.metrics, outputs))[:2]  # those that are defined for this data
    rows: list[dict[str, Any]] = []
    for value, count in zip(*(x.tolist() for x in of_sample.unique(return_counts=True)), strict=True):
        chosen = of_sample == value
        figures = measure(wanted, {k: v[chosen] for k, v in outputs.items()})
        rows.append({"value": names.get(value), "samples": count, **{k: f.to_dict() for k, f in figures.items()}})
    if wanted:
        first = wanted[0]
        sign = 1 if metrics.get(first).meta.get("better") == "max" else -1
        rows.sort(key=lambda r: (first not in r, sign * r[first]["value"] if first in r else 0.0))
    cells = [
        (
            r["value"] or "(none)",
            f"{r['samples']:,}",
            *(format_interval(n, r[n]) if n in r else format_metric(n, None) for n in wanted),
        )
        for r in rows[:MOST_SLICES]
    ]
    notes = [f"{len(rows) - MOST_SLICES:,} more slices are in --json"] if len(rows) > MOST_SLICES else []
    few = sum(r["samples"] < FEW for r in rows)
    notes += [f"{few} of {len(rows)} slices have fewer than {FEW} samples: their figures say little"] if few else []
    heads = (column, "samples", *(n.replace("_", " ") for n in wanted))
    return Extra(
        "slices", {"column": column, "rows": rows}, [(f"by {column}, the worst first", heads, cells, True)], notes
    )


def _groups(measured: SplitOfData, column: str) -> tuple[Tensor, dict[int, str]]:
    """The hash of each sample's value (N,), and the values by hash; NONE where a sample has none."""
    import torch

    from bigmodel_cli.core.readers.text_files import AUTO
    from bigmodel_cli.core.sources import GroupedSource
    from bigmodel_cli.data.subset import Subset
    from bigmodel_cli.data.user_data.column_values import group_names
    from bigmodel_cli.engine.build.data import load_data

    section = measured.recipe.data
    path = section.options.get("path")
    if path is None or "group_by" not in section.options:
        raise InputError(f"--by {column}: data {section.name}", "expected your own table of texts or images")
    names = group_names(path, column, section.options.get("encoding", AUTO))
    by_column = section.model_copy(update={"group_by": column})
    bundle = load_data(by_column, measured.trained.task.spec, measured.recipe.task)
    chosen = measured.source if isinstance(measured.source, Subset) else None
    source, places = (chosen.source, chosen.indices) if chosen is not None else (measured.source, None)
    split = measured.name if measured.name in bundle.load else "train"
    grouped = bundle.load[split]()
    if not isinstance(grouped, GroupedSource) or len(grouped) != len(source):
        raise InputError(f"--by {column}: the rows of {split} have no such column", "expected your own table")
    groups = grouped.groups if places is None else grouped.groups[places]
    return torch.where(torch.isin(groups, torch.tensor(list(names))), groups, NONE), names
