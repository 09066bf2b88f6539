"""The few types that tasks, models, data and the engine share.

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
    """What does not train: tensor names (parameters and buffers), and the modules held in eval mode."""

    tensors: frozenset[str] = frozenset()
    modules: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class Start:
    """What a fine-tuning method is given.

    `model` has the weights it starts from (or random ones where a run is resumed: what is needed of
    the start must then be in the model's own tensors), and does `task`. `head` names its last layer.
    `open` brings another checkpoint to life, as a teacher. `data` is the spec of the data to fine-tune on.
    """

    model: nn.Module
    head: str
    open: Callable[[str], Any]
    task: Task
    data: Spec


Solve = Callable[["Tensor", "Tensor", "Tensor", "Tensor", "Tensor"], "tuple[Tensor, Tensor, str]"]
"""(train features (N,D), labels (N,), their weights (N,), val features, val labels) -> weight (K,D), bias (K,), and
how it was chosen."""


@dataclass(frozen=True)
class Adapted:
    """What a fine-tuning method decided; what it does not name trains as usual."""

    frozen: Frozen = Frozen()
    stages: tuple[tuple[float, Frozen], ...] = ()
    """(share of the epochs, what is frozen beside `frozen` from then on), in order of the share."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Factor of the learning rate by parameter name; 1 where it is not named."""
    objective: Callable[[Task], Task] | None = None
    """Task -> Task, with something added to the loss."""
    solve: Solve | None = None
    """Finds the head at once instead of step by step, on features that the frozen backbone gives."""
    once: Callable[[nn.Module, Batch], Batch] | None = None
    """(model as it starts, prepared batch) -> tensors (B,...) that lie beside each sample from then on."""

    def stage(self, share: float) -> Frozen | None:
        """What is frozen beside `frozen` once `share` of the epochs is done; None for a method without stages."""
        reached = [held for begins, held in self.stages if begins <= share]
        return reached[-1] if reached else None


def finite(value: Any) -> Any:
    """`value` with non-finite floats as None: JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value
