"""Accuracy if the model may abstain. Shapes: N samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


def selective(confidence: Tensor, correct: Tensor) -> dict[str, Any]:
    """Accuracy on the most confident share of the samples, for each of COVERAGES, and the area under the risk.

    ``aurc`` is the mean error over all coverages (Geifman et al. 2019), lower is better; an order that puts all
    mistakes last has ``aurc_best``.

    Args:
        confidence: (N,) higher for what the model is surer of.
        correct: (N,) bool.
    """
    wrong = (~correct)[confidence.argsort(descending=True, stable=True)].double()
    n = len(wrong)
    if not n:
        return {}
    counts = torch.arange(1, n + 1)
    risk, best = wrong.cumsum(0) / counts, wrong.sort().values.cumsum(0) / counts
    rows = []
    for coverage in COVERAGES:
        kept = max(1, round(coverage * n))
        rows.append({"coverage": coverage, "samples": kept, "accuracy": 1 - float(risk[kept - 1])})
    return {"at_coverage": rows, "aurc": float(risk.mean()), "aurc_best": float(best.mean())}
