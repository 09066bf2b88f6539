"""The page that ``eval`` writes beside what it evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.commands.evaluation.measuring import SplitOfData
    from bigmodel_cli.commands.evaluation.trust import Extra
    from bigmodel_cli.insight.reports import Report


def place_of(measured: SplitOfData, given: Path | None, published: bool) -> Path:
    """The page's file: the one given, else one beside the checkpoint or the export.

    It is ``eval-SPLIT.html`` in a run folder, ``NAME-eval-SPLIT.html`` beside a file or an export, and in the working
    directory for published weights; with the name of the data if that is not what the model was trained on.
    """
    from bigmodel_cli.engine.build.data import is_same_data

    if given is not None:
        return given
    data, path = measured.recipe.data, measured.trained.path
    other = "" if is_same_data(measured.trained.recipe.to_dict()["data"], data) else "-" + _plain(data.shown)
    name = f"eval-{measured.name}{other}.html"
    if published:
        return Path(f"{_plain(path.name)}-{name}")
    if (path.parent / "metrics.jsonl").exists():
        return path.parent / (name if path.name == "best.pt" else f"{path.stem}-{name}")
    return path.parent / f"{path.name if path.is_dir() else path.stem}-{name}"


def _plain(name: str) -> str:
    """`name` as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


@dataclass(frozen=True)
class Found:
    """What an evaluation found: the report, the task's outputs, what else was measured, and lines to know."""

    report: Report
    outputs: Mapping[str, Tensor]
    extras: Sequence[Extra]
    notes: Sequence[str]


def write_page(path: Path, measured: SplitOfData, found: Found) -> None:
    """Write the page of an evaluation.

    Raises:
        MachineError: it cannot be written.
    """
    from html import escape

    from bigmodel_cli.core.strict_yaml import dump_yaml
    from bigmodel_cli.insight import page
    from bigmodel_cli.insight.evaluated import Evaluated, sections
    from bigmodel_cli.insight.page import Section

    task, recipe = measured.task, measured.recipe
    report = found.report
    evaluated = Evaluated(task, measured.bundle.spec, measured.source, found.outputs, report.values)
    data = {
        "data": f"{recipe.data.shown}, {measured.says}: {len(measured.source):,} samples",
        "fingerprint of the data": measured.bundle.fingerprint or "not known",
        "evaluated": str(measured.trained.path),
        **_environment(measured.trained.meta),
    }
    # The tables that the terminal shows are here as figures, except where a report has none.
    drawn = sections(task.report, evaluated)
    shown = [] if drawn else [Section(t or "Details", page.table(c, r, n)) for t, c, r, n in report.tables[1:]]
    more = [Section(t or e.key, page.table(c, r, n)) for e in found.extras for t, c, r, n in e.tables]
    parts: list[str | Section] = [
        page.tiles(_tiles(report)),
        *(page.note(line) for line in found.notes),
        *more,
        *drawn,
        *shown,
        Section("Data and machine", page.facts(data)),
        Section("Recipe", f"<pre>{escape(dump_yaml(recipe.to_dict()))}</pre>"),
    ]
    page.write(path, f"{recipe.model.name} on {recipe.data.shown}, {measured.says}", parts)


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """The headline metrics, the first of the task first."""
    from bigmodel_cli.metrics.reading import format_metric

    return [
        (name.replace("_", " "), format_metric(name, v["value"]),
         "" if v["low"] is None else f"{format_metric(name, v['low'])} .. {format_metric(name, v['high'])}")
        for name, v in report.values.get("headline", {}).items()
    ]  # fmt: skip


def _environment(meta: Mapping[str, Any]) -> dict[str, str]:
    """Where the checkpoint was trained."""
    found = meta.get("env")
    return {f"trained with {k}": str(v) for k, v in found.items()} if isinstance(found, dict) else {}
