"""Lesson: a trained network is a better start than a random one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.registry import lessons, models, optimizers
from bigmodel_cli.lessons.lesson import SPEC, Result, accuracy, batches, fit, normalized, percent

FEW, STEPS = 1, 60
RENAMED = torch.tensor([1, 4, 7, 0, 3, 6, 9, 2, 5, 8])
"""The new name of each digit: another class for another task on the same pictures."""


@lessons.register(
    order=8,
    formula="new network = trained backbone + new head",
    page="docs/from-zero.md#8-retrain",
    more="bigmodel finetune --from RUN --freeze-backbone",
)
def retrain() -> Result:
    """Give the ten digits new names, and teach them with one picture each: to a new network, and to a trained one."""
    images, labels = normalized()
    base = models.get("cnn")(SPEC)
    _train(base, images, labels, 300, list(base.named_parameters()))
    chosen = torch.cat([(labels == k).nonzero()[:FEW, 0] for k in range(10)])
    test_images, test_labels = normalized("test")
    found: dict[str, float] = {}
    for name in ("from scratch", "backbone frozen", "everything retrained"):
        torch.manual_seed(0)
        model = models.get("cnn")(SPEC)
        if name != "from scratch":
            model.load_state_dict({k: v for k, v in base.state_dict().items() if "head" not in k}, strict=False)
        trained = [(n, p) for n, p in model.named_parameters() if name != "backbone frozen" or n.startswith("head")]
        _train(model, images[chosen], RENAMED[labels[chosen]], STEPS, trained)
        found[name] = accuracy(model, test_images, RENAMED[test_labels])

    def draw(axes: Any) -> None:
        axes.barh(list(found), [100 * value for value in found.values()])
        axes.set(xlabel="accuracy on test images, %", xlim=(0, 100))

    says = [
        f"{10 * FEW} pictures are too few to learn what a stroke is, but enough to name what is known already",
        "a frozen backbone cannot be spoilt by them; training everything on so few forgets more than it learns",
    ]
    rows = [(name, percent(value)) for name, value in found.items()]
    return Result(says, ("start", "new names, right on test"), rows, draw, size=(6.0, 2.2), values=found)


def _train(
    model: nn.Module, images: Tensor, labels: Tensor, steps: int, trained: list[tuple[str, nn.Parameter]]
) -> None:
    optimizer = optimizers.get("adamw")(trained, lr=3e-3)
    fit(model, optimizer, batches(min(64, len(labels)), steps, images, labels))
