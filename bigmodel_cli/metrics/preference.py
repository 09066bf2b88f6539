"""Metrics of models trained on preferences. Shapes: N pairs."""

from __future__ import annotations

from torch import Tensor

from bigmodel_cli.core.registry import metrics
from bigmodel_cli.metrics.intervals import Outputs


@metrics.register(better="max", share=True, needs=("margin",))
def reward_accuracy(out: Outputs) -> Tensor:
    """Fraction of pairs whose chosen answer has the larger implicit reward (Rafailov et al. 2023); ties count half."""
    margin: Tensor = out["margin"]
    return (margin > 0).double() + 0.5 * (margin == 0).double()  # every margin is 0 at the start


@metrics.register(better="max", needs=("margin",))
def reward_margin(out: Outputs) -> Tensor:
    """The mean difference of the implicit rewards of the chosen and the rejected answer."""
    return out["margin"]  # type: ignore[no-any-return]
