"""Whether confidence tells the data of the model from other data. Shapes: N samples, K classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Scores = Mapping[str, Callable[[Tensor], Tensor]]
SCORES: Scores = {
    "energy": lambda logits: logits.double().logsumexp(1),
    "max_logit": lambda logits: logits.double().amax(1),
}
OF_PROBABILITIES: Scores = {
    "max_probability": lambda logits: logits.double().softmax(1).amax(1),
    "negative_entropy": lambda logits: (logits.double().log_softmax(1).exp() * logits.double().log_softmax(1)).sum(1),
}
"""Higher for samples like those of training: Hendrycks and Gimpel 2017, Liu et al. 2020."""
RECALL = 0.95


def separation(inside: Tensor, outside: Tensor, probabilities: bool) -> dict[str, dict[str, Any]]:
    """For each score: AUROC, the chance that a sample of the own data has a higher one than a foreign sample; and
    FPR95, the share of foreign samples taken for own ones where 95% of the own are kept.

    Args:
        inside: logits (N,K) of the own data, whose samples count as positive.
        outside: logits (M,K) of the other data.
        probabilities: whether they are logits of probabilities.
    """
    import torch
    from sklearn.metrics import roc_auc_score

    found: dict[str, dict[str, Any]] = {}
    truth = torch.cat([torch.ones(len(inside)), torch.zeros(len(outside))]).numpy()
    for name, score in {**(OF_PROBABILITIES if probabilities else {}), **SCORES}.items():
        own, foreign = score(inside), score(outside)
        kept = own.sort(descending=True).values[max(0, -(-len(own) * 95 // 100) - 1)]
        found[name] = {
            "auroc": float(roc_auc_score(truth, torch.cat([own, foreign]).numpy())),
            "fpr95": float((foreign >= kept).double().mean()),
        }
    return found
