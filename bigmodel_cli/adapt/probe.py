"""The linear probe: the optimal linear head for the backbone's features, solved directly."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.adapt.freeze import below_head, freeze
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.tasks import Classifies
from bigmodel_cli.core.types import Adapted, Start

Strength = Annotated[float, Field(gt=0)]


@methods.register("probe", lr=1e-3, auto=1)
def probe(
    start: Start, *, strengths: tuple[Strength, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0), max_iter: int = 1000
) -> Adapted:
    """Logistic regression on the frozen backbone's features, solved exactly; its penalty is chosen on val.

    `strengths` are inverse regularization strengths (scikit-learn's C). There is no
    augmentation, and optimizer, schedule and epochs are ignored.

    Raises:
        InputError: the task has no classes, or the head is not one linear layer with a bias.
    """
    if not isinstance(start.task, Classifies):
        raise InputError(f"probe: {start.task.name.replace('_', ' ')} has no classes", "expected a classifier")
    classes = _linear_head(start).out_features

    def solve(
        train: Tensor, labels: Tensor, weights: Tensor, val: Tensor, val_labels: Tensor
    ) -> tuple[Tensor, Tensor, str]:
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        # Standardize features so that the penalty treats all alike; the scale is folded into the weights below.
        mean, scale = train.double().mean(0), train.double().std(0).clamp(min=1e-6)
        known = val_labels >= 0
        x, x_val, y_val = ((train - mean) / scale).numpy(), ((val[known] - mean) / scale).numpy(), val_labels[known]
        best: tuple[tuple[float, float], Tensor, Tensor, float] | None = None
        for strength in strengths:
            fitted = LogisticRegression(C=strength, max_iter=max_iter)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # close enough to compare strengths
                fitted.fit(x, labels.numpy(), weights.numpy())
            weight, bias = _coefficients(fitted, classes)
            logits = torch.from_numpy(x_val) @ weight.T + bias
            accuracy = (logits.argmax(1) == y_val).double().mean().item()
            loss = nn.functional.cross_entropy(logits, y_val).item()
            if best is None or (accuracy, -loss) > best[0]:
                best = ((accuracy, -loss), weight, bias, strength)
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


def _coefficients(fitted: object, classes: int) -> tuple[Tensor, Tensor]:
    """Weight (K,D) and bias (K,) of a fitted regression; a class missing from train gets a very low bias."""
    coefficients = torch.from_numpy(fitted.coef_)  # type: ignore[attr-defined]
    intercepts = torch.from_numpy(fitted.intercept_)  # type: ignore[attr-defined]
    if len(coefficients) == 1:  # binary: scikit-learn stores one row
        coefficients = torch.cat([-coefficients, coefficients]) / 2
        intercepts = torch.cat([-intercepts, intercepts]) / 2
    weight = coefficients.new_zeros(classes, coefficients.shape[1])
    bias = intercepts.new_full((classes,), -30.0)
    present = torch.from_numpy(fitted.classes_)  # type: ignore[attr-defined]
    weight[present], bias[present] = coefficients, intercepts
    return weight, bias
