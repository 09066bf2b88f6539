"""Types that tasks, models, data and the engine share.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.sources import Batch as Batch
from bigmodel_cli.core.sources import DataBundle as DataBundle
from bigmodel_cli.core.sources import Source as Source
from bigmodel_cli.core.specs import ImageSpec as ImageSpec
from bigmodel_cli.core.specs import Spec as Spec
from bigmodel_cli.core.specs import TextSpec as TextSpec
from bigmodel_cli.core.tasks import LossSum as LossSum
from bigmodel_cli.core.tasks import SampleKey as SampleKey
from bigmodel_cli.core.tasks import Task as Task

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Frozen:
    """The frozen parts of a model: names of parameters and buffers, and modules kept in eval mode."""

    tensors: frozenset[str] = frozenset()
    modules: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class Start:
    """The input of a fine-tuning method.

    `model` has its starting weights and performs `task`. In a resumed run its weights are random, so a method
    must keep what it needs of the start in the model's own tensors. `head` names its last layer.
    `open` loads another checkpoint, such as a teacher. `data` is the spec of the data to fine-tune on.
    """

    model: nn.Module
    head: str
    open: Callable[[str], Any]
    task: Task
    data: Spec


Solve = Callable[["Tensor", "Tensor", "Tensor", "Tensor", "Tensor"], "tuple[Tensor, Tensor, str]"]
"""(train features (N,D), labels (N,), their weights (N,), val features, val labels) -> weight (K,D), bias (K,), and
a line on how they were chosen."""


@dataclass(frozen=True)
class Adapted:
    """The output of a fine-tuning method. Everything that it does not name trains as usual."""

    frozen: Frozen = Frozen()
    stages: tuple[tuple[float, Frozen], ...] = ()
    """(fraction of the epochs, what is frozen in addition to `frozen` from then on), sorted by the fraction."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Factor of the learning rate by parameter name; 1 for all others."""
    objective: Callable[[Task], Task] | None = None
    """Task -> Task with a changed loss."""
    solve: Solve | None = None
    """Computes the head directly from features of the frozen backbone, instead of training it in steps."""
    first_head: Solve | None = None
    """Computes the head that training starts from, on features of the starting weights (LP-FT, Kumar et al. 2022)."""
    once: Callable[[nn.Module, Batch], Batch] | None = None
    """(model with its starting weights, prepared batch) -> tensors (B,...) that are added to each sample."""

    def stage(self, share: float) -> Frozen | None:
        """What is frozen in addition to `frozen` after the fraction `share` of the epochs; None before any stage."""
        reached = [held for begins, held in self.stages if begins <= share]
        return reached[-1] if reached else None


def finite(value: Any) -> Any:
    """`value` with non-finite floats as None: JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value
