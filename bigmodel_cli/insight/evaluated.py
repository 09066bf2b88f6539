"""What a figure of a report is drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.registry import report_figures, views
from bigmodel_cli.core.sources import FileSource
from bigmodel_cli.core.types import Source
from bigmodel_cli.insight.page import Section


@dataclass(frozen=True)
class Evaluated:
    """The outputs of a task on a split (first dimension N), and the plain values of its report.

    `data` is the spec of the data, whose samples are in `source`.
    """

    task: Any
    data: Any
    source: Source
    outputs: Mapping[str, Tensor]
    values: Mapping[str, Any]

    def view(self, place: int) -> str:
        """Sample `place` of the outputs as HTML; its name where its kind of input has no view."""
        index = self.index(place)
        if self.data.kind not in views.found:
            return escape(self.source.name(index))
        stored = self.source.file(index) if isinstance(self.source, FileSource) else None
        return str(views.get(self.data.kind)(self.source.gather(torch.tensor([index])), self.data, stored))

    def index(self, place: int) -> int:
        """The index in the split of sample `place` of the outputs."""
        return int(self.outputs["index"][place]) if "index" in self.outputs else place

    def name(self, place: int) -> str:
        """The name of sample `place`. That of a text has its first words as they were read, with those that are unknown
        to the model."""
        return self.source.name(self.index(place))


def sections(report: str, found: Evaluated) -> list[Section]:
    """The registered figures of the report called `report`, in their order; those that have nothing to show left out.

    A figure is a function of an :class:`Evaluated` that returns HTML, whose text it has escaped. Its registration
    names the reports that it is for (``of``), its ``title``, and its place on the page (``order``).
    """
    known = [entry for entry in report_figures.found.values() if report in entry.meta["of"]]
    drawn = []
    for entry in sorted(known, key=lambda entry: entry.meta["order"]):
        body = report_figures.get(entry.name)(found)
        if body:
            drawn.append(Section(entry.meta["title"], body))
    return drawn


def evenly(count: int, most: int) -> Sequence[int]:
    """At most `most` places among `count`, evenly spaced."""
    return range(count) if count <= most else [i * count // most for i in range(most)]
