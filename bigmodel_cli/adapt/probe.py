"""The linear probe: the optimal linear head for the backbone's features, solved directly."""

from __future__ import annotations

from bigmodel_cli.adapt.freeze import below_head, freeze
from bigmodel_cli.adapt.logistic_regression import STRENGTHS, Strength, linear_head, solver
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.types import Adapted, Start


@methods.register("probe", lr=1e-3, auto=1, features=True)
def probe(start: Start, *, strengths: tuple[Strength, ...] = STRENGTHS, max_iter: int = 1000) -> Adapted:
    """Logistic regression on the frozen backbone's features, solved exactly; its penalty is cross-validated on train.

    `strengths` are inverse regularization strengths (scikit-learn's C). There is no
    augmentation, and optimizer, schedule and epochs are ignored.

    Raises:
        InputError: the task has no classes, or the head is not one linear layer with a bias.
    """
    classes = linear_head(start, "probe").out_features
    return Adapted(freeze(start.model, below_head(start)), solve=solver(classes, strengths, max_iter))
