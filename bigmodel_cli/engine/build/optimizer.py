"""Builds the optimizer of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import optimizers
from bigmodel_cli.engine.device.lazy_dynamo import postpone_dynamo
from bigmodel_cli.optim.combined import Combined


def build_optimizer(
    recipe: Recipe, model: nn.Module, rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the trainable parameters; `rates` scales learning rates, by parameter name."""
    return optimizer_over(recipe, model.named_parameters(), rates)


def optimizer_over(
    recipe: Recipe, parameters: Iterable[tuple[str, nn.Parameter]], rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """:func:`build_optimizer`, over `parameters` with their names.

    Raises:
        InputError: every parameter is frozen.
    """
    trainable = [(name, p) for name, p in parameters if p.requires_grad]
    if not trainable:
        raise InputError(f"method {recipe.start.method} leaves nothing of {recipe.model.name} to train")
    postpone_dynamo()
    optimizer = optimizers.get(recipe.optimizer.name)(trainable, **recipe.optimizer.options)
    if rates:
        scale_learning_rates(optimizer, {id(p): rates.get(name, 1.0) for name, p in trainable})
    return optimizer  # type: ignore[no-any-return]


def scale_learning_rates(optimizer: torch.optim.Optimizer, factors: Mapping[int, float]) -> None:
    """Split each parameter group by the factor of its parameters (keyed by ``id``), and scale the learning rates."""
    sub_optimizers = optimizer.parts if isinstance(optimizer, Combined) else [optimizer]
    for sub_optimizer in sub_optimizers:
        groups = []
        for group in sub_optimizer.param_groups:
            for factor in dict.fromkeys(factors[id(p)] for p in group["params"]):
                members = [p for p in group["params"] if factors[id(p)] == factor]
                groups.append({**group, "params": members, "lr": group["lr"] * factor})
        sub_optimizer.param_groups[:] = groups
    optimizer.param_groups = [group for sub_optimizer in sub_optimizers for group in sub_optimizer.param_groups]
