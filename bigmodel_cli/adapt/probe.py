"""The linear probe: the optimal linear head for the backbone's features, solved directly."""

from __future__ import annotations

<<<<<<< HEAD
from bigmodel_cli.adapt.freeze import below_head, freeze
from bigmodel_cli.adapt.logistic_regression import STRENGTHS, Strength, linear_head, solver
=======
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.adapt.freeze import below_head, freeze
from bigmodel_cli.adapt.head_solvers import SOLVERS
from bigmodel_cli.core.answering import Answers
from bigmodel_cli.core.errors import InputError
>>>>>>> 24baa94 (Multi-label classification and regression for images and texts: tasks, losses, metrics, answers, data, --task, through every command)
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
<<<<<<< HEAD
    classes = linear_head(start, "probe").out_features
    return Adapted(freeze(start.model, below_head(start)), solve=solver(classes, strengths, max_iter))
=======
    task = start.task
    if not isinstance(task, Answers) or task.answers not in SOLVERS:
        what = f"probe: {task.name.replace('_', ' ')} has no classes"
        raise InputError(what, "expected a classifier, or a regression")
    solver, outputs = SOLVERS[task.answers], _linear_head(start).out_features

    def solve(
        train: Tensor, labels: Tensor, weights: Tensor, val: Tensor, val_labels: Tensor
    ) -> tuple[Tensor, Tensor, str]:
        # Standardize features so that the penalty treats all alike; the scale is folded into the weights below.
        mean, scale = train.double().mean(0), train.double().std(0).clamp(min=1e-6)
        known = solver.known(val_labels)
        x, x_val, y_val = (train - mean) / scale, (val[known] - mean) / scale, val_labels[known]
        best: tuple[tuple[float, ...], Tensor, Tensor, float] | None = None
        for strength in strengths:
            weight, bias = solver.fit(x, labels, weights, strength, max_iter, outputs)
            score = solver.score(x_val @ weight.T + bias, y_val)
            if best is None or score > best[0]:
                best = (score, weight, bias, strength)
        assert best is not None
        _, weight, bias, strength = best
        weight = weight / scale
        note = f"probe: strength {strength:g} of {len(strengths)} tried, chosen on {int(known.sum())} val samples"
        return weight.float(), (bias - weight @ mean).float(), note

    return Adapted(freeze(start.model, below_head(start)), solve=solve)


def _linear_head(start: Start) -> nn.Linear:
    """The model's head.

    Raises:
        InputError: it is not one linear layer with a bias.
    """
    head = start.model.get_submodule(start.head)
    if not isinstance(head, nn.Linear):
        what = f"probe: the model's head is {type(head).__name__}"
        raise InputError(what, "expected a linear layer", "--freeze-backbone")
    if head.bias is None:
        raise InputError("probe: the model's head has no bias, which the solution needs", hint="--freeze-backbone")
    return head
>>>>>>> 24baa94 (Multi-label classification and regression for images and texts: tasks, losses, metrics, answers, data, --task, through every command)
