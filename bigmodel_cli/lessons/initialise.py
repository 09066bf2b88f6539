"""Lesson: what the size of the first weights does to a deep network."""

from __future__ import annotations

from typing import Any

import torch

from bigmodel_cli.core.registry import lessons
from bigmodel_cli.lessons.lesson import Result, normalized

WIDTH, DEPTH = 256, 12


@lessons.register(
    order=2,
    formula="w ~ N(0, 2 / fan_in) keeps the variance of a ReLU network (He et al. 2015)",
    page="docs/from-zero.md#2-initialise",
    more="bigmodel train mlp --set model.init=kaiming",
)
def initialise() -> Result:
    """Start the weights too small, too large and right: signals vanish, explode or stay."""
    images = normalized()[0][:256].flatten(1)
    scales = {"too small: std 0.01": 0.01, "He: sqrt(2 / fan_in)": None, "too large: std 0.3": 0.3}
    spreads: dict[str, list[float]] = {}
    histograms: dict[str, dict[int, Any]] = {}
    for name, scale in scales.items():
        x = images
        spreads[name], histograms[name] = [], {}
        for layer in range(1, DEPTH + 1):
            std = scale if scale is not None else (2 / x.shape[1]) ** 0.5
            x = torch.relu(x @ (torch.randn(x.shape[1], WIDTH) * std))
            spreads[name].append(float(x.std()))
            if layer in (1, 6, DEPTH):
                histograms[name][layer] = x[x > 0].log10().numpy()
    shown = (1, 3, 6, 9, DEPTH)
    rows = [(name, *(f"{values[i - 1]:.2g}" for i in shown)) for name, values in spreads.items()]

    def draw(axes: Any) -> None:
        for panel, (name, found) in zip(axes, histograms.items(), strict=True):
            for layer, values in found.items():
                panel.hist(values, bins=60, histtype="step", density=True, label=f"layer {layer}")
            panel.set(title=name, xlabel="power of ten of an activation above 0")
            panel.legend(frameon=False)

    says = [
        f"one batch of digits through {DEPTH} ReLU layers of {WIDTH} units, no training",
        f"too small: the signal is gone after {DEPTH} layers ({spreads['too small: std 0.01'][-1]:.0e})",
        f"too large: it has grown to {spreads['too large: std 0.3'][-1]:.0e}; the first step would be a NaN",
    ]
    heads = ("weights", *(f"layer {i}" for i in shown))
    return Result(says, heads, rows, draw, (1, 3), (4.0, 3.0), {"spreads": spreads})
