"""The subject of an export: a trained model with its task, and samples for the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from bigmodel_cli.core.types import Batch, Task
from bigmodel_cli.export.pixels import FromPixels, describe_in_graph, to_pixels


@dataclass(frozen=True)
class Subject:
    """A trained model, and the samples to compare its export on.

    Args:
        model: on the CPU, fp32, in eval mode.
        task: the model's task.
        raw: raw validation batches, with labels.
        about: plain values for export.json: arch, arch_args, task, input, recipe, checkpoint.
        pixels: include the preprocessing in the graph, so that the export takes raw images.
        files: (name, bytes) of real files of the data, for the example to be tried on.
        histories: what every user of the data did, as `values` (N,) and `offsets` (U + 1,), for formats that carry it.
    """

    model: nn.Module
    task: Task
    raw: Sequence[Batch]
    about: Mapping[str, Any]
    pixels: bool = False
    files: Sequence[tuple[str, bytes]] = ()
    histories: Mapping[str, Tensor] | None = None

    @cached_property
    def prepared(self) -> list[Batch]:
        return [self.task.prepare(batch) for batch in self.raw]

    @property
    def inputs(self) -> list[tuple[Tensor, ...]]:
        return [tuple(b[name].contiguous() for name in self.task.inputs) for b in self.prepared]

    @property
    def given(self) -> list[tuple[Tensor, ...]]:
        """The export's inputs: raw images, or the same as the checkpoint's `inputs`."""
        return [(to_pixels(batch, self.task.spec),) for batch in self.raw] if self.pixels else self.inputs

    def example(self) -> tuple[Tensor, ...]:
        """Two samples, since tracers treat a batch of one as a constant."""
        return tuple(x[:1].repeat(2, *(1,) * (x.dim() - 1)) for x in self.given[0])

    def graph(self) -> nn.Module:
        """The module to export."""
        return FromPixels(self.model, self.task.spec).eval() if self.pixels else self.model

    def preprocessing(self, fixed: bool) -> dict[str, Any]:
        """The preprocessing left to the caller; `fixed`: the format accepts only one image size."""
        steps = self.task.preprocessing()
        if not self.pixels:
            return steps  # type: ignore[no-any-return]
        height, width = self.given[0][0].shape[1:3]
        return describe_in_graph(steps, (height, width) if fixed else None)

    def carry(self, further: Sequence[str] = ()) -> dict[str, Any]:
        """Metadata to embed in the file, if its format allows it, and the `further` fields that the format asks for."""
        describe_in_graph = {key: self.about[key] for key in ("arch", "arch_args")}
        own = {**describe_in_graph, "classes": list(self.task.spec.classes), "preprocess": self.task.preprocessing()}
        return own | {name: value for name, value in (("histories", self.histories),) if name in further}
