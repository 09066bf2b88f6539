"""The linear probe: the optimal linear head for the backbone's features, solved directly."""

from __future__ import annotations

from torch import Tensor

from bigmodel_cli.adapt.freeze import below_head, freeze
from bigmodel_cli.adapt.head_solvers import SOLVERS
from bigmodel_cli.adapt.logistic_regression import STRENGTHS, Strength, feature_scale, linear_head, solver
from bigmodel_cli.core.answering import Answers
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.types import Adapted, Start


@methods.register("probe", lr=1e-3, auto=1, features=True)
def probe(start: Start, *, strengths: tuple[Strength, ...] = STRENGTHS, max_iter: int = 1000) -> Adapted:
    """Logistic regression on the frozen backbone's features, solved exactly; its penalty is cross-validated on train.

    Numbers are solved by ridge regression, and labels by one logistic regression each. `strengths` are inverse
    regularization strengths (scikit-learn's C). There is no augmentation; optimizer, schedule and epochs are ignored.

    Raises:
        InputError: the task has neither classes, labels nor numbers, or the head is not one linear layer with a bias.
    """
    task = start.task
    outputs = linear_head(start, "probe").out_features
    held = freeze(start.model, below_head(start))
    if not isinstance(task, Answers) or task.answers == "classes":
        return Adapted(held, solve=solver(outputs, strengths, max_iter))
    own = SOLVERS[task.answers]

    def solve(
        train: Tensor, labels: Tensor, weights: Tensor, val: Tensor, val_labels: Tensor
    ) -> tuple[Tensor, Tensor, str]:
        # Standardize features so that the penalty treats all alike; the scale is folded into the weights below.
        mean, scale = train.double().mean(0), feature_scale(train.double())
        known = own.known(val_labels)
        x, x_val, y_val = (train - mean) / scale, (val[known] - mean) / scale, val_labels[known]
        best: tuple[tuple[float, ...], Tensor, Tensor, float] | None = None
        for strength in strengths:
            weight, bias = own.fit(x, labels, weights, strength, max_iter, outputs)
            score = own.score(x_val @ weight.T + bias, y_val)
            if best is None or score > best[0]:
                best = (score, weight, bias, strength)
        assert best is not None
        _, weight, bias, strength = best
        weight = weight / scale
        note = f"probe: strength {strength:g} of {len(strengths)} tried, chosen on {int(known.sum())} val samples"
        return weight.float(), (bias - weight @ mean).float(), note

    return Adapted(held, solve=solve)
