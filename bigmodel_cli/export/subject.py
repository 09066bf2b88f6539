"""What is exported: a trained model with its task, and samples to prove the export on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from bigmodel_cli.core.types import Batch, Task
from bigmodel_cli.export.pixels import FromPixels, described, images


@dataclass(frozen=True)
class Subject:
    """A trained model, and what an export of it is compared on.

    Args:
        model: on the CPU, fp32, in eval mode.
        task: what a batch means.
        raw: validation samples as the data gives them, with labels.
        about: plain values of export.json: arch, arch_args, task, input, recipe, checkpoint.
        pixels: the preparation goes into the graph; the export takes plain images.
    """

    model: nn.Module
    task: Task
    raw: Sequence[Batch]
    about: Mapping[str, Any]
    pixels: bool = False

    @cached_property
    def prepared(self) -> list[Batch]:
        return [self.task.prepare(batch) for batch in self.raw]

    @property
    def inputs(self) -> list[tuple[Tensor, ...]]:
        return [tuple(b[name].contiguous() for name in self.task.inputs) for b in self.prepared]

    @property
    def given(self) -> list[tuple[Tensor, ...]]:
        """What the export takes where the checkpoint takes `inputs`."""
        return [(images(batch, self.task.spec),) for batch in self.raw] if self.pixels else self.inputs

    def example(self) -> tuple[Tensor, ...]:
        """Two samples: a batch of one would be taken for a constant by the tracers."""
        return tuple(x[:1].repeat(2, *(1,) * (x.dim() - 1)) for x in self.given[0])

    def graph(self) -> nn.Module:
        """What is exported."""
        return FromPixels(self.model, self.task.spec).eval() if self.pixels else self.model

    def preprocessing(self, fixed: bool) -> dict[str, Any]:
        """What is left to do before; `fixed`: the format takes images of one size."""
        steps = self.task.preprocessing()
        if not self.pixels:
            return steps  # type: ignore[no-any-return]
        height, width = self.given[0][0].shape[1:3]
        return described(steps, (height, width) if fixed else None)

    def carry(self) -> dict[str, Any]:
        """What may go along inside the file, where its format has room."""
        described = {key: self.about[key] for key in ("arch", "arch_args")}
        return {**described, "classes": list(self.task.spec.classes), "preprocess": self.task.preprocessing()}
