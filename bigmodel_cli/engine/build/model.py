"""Builds the task and the model of a recipe for the spec of its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.networks import InitialisedFromData
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import augments, losses, models, tasks
from bigmodel_cli.core.specs import spec_type
from bigmodel_cli.core.types import Source, Spec, Task

MAX_INIT_ELEMENTS = 1 << 23  # of the train split, for a model that initialises from data: some 2,700 CIFAR images


def head_name(recipe: Recipe) -> str:
    """The name of the last layer of the recipe's model, from its registration."""
    return str(models.get(recipe.model.name).meta["head"])


def build_spec(values: Mapping[str, Any], source: str) -> Spec:
    """A spec from its plain values in the checkpoint called `source`.

    Raises:
        InputError: they do not describe a spec.
    """
    kind = values.get("kind")
    try:
        kind_of_spec = spec_type(kind)
    except InputError as error:
        raise InputError(f"{source}: {error.what}", error.expected) from None
    try:
        return kind_of_spec.from_dict({k: v for k, v in values.items() if k != "kind"})
    except InputError as error:
        raise InputError(f"{source}: {error.what}", error.expected, "restore it from a copy") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{source}: not a spec of kind {kind!r} ({error})", hint="restore it from a copy") from None


def build_task(recipe: Recipe, spec: Spec) -> Task:
    """The task that the model is registered for, with the recipe's loss and augmentation.

    Raises:
        InputError: the augmentation or the model is for another kind of data.
    """
    loss = losses.get(recipe.loss.name)(**recipe.loss.options)
    augmentation = augments.get(recipe.augment.name)
    if augmentation.meta.get("changes", True) and augmentation.meta.get("kind", spec.kind) != spec.kind:
        what = f"augment.name = {augmentation.name}, which is not for {spec.kind}"
        raise InputError(what, hint="bigmodel recipe schema")
    augment = augmentation(**recipe.augment.options)
    entry = tasks.get(models.get(recipe.model.name).meta["task"])
    wanted = entry.meta["spec_type"].kind
    if wanted != spec.kind:
        what = f"{recipe.model.name} is for {wanted} data"
        raise InputError(what, f"data {recipe.data.name} is {spec.kind}", "bigmodel models")
    return entry(spec, loss, augment)  # type: ignore[no-any-return]


def build_model(recipe: Recipe, spec: Spec) -> nn.Module:
    """The model, randomly initialised from torch's global generator."""
    from bigmodel_cli.models.layers.initialise import initialise

    model = build_architecture(recipe, spec)
    initialise(model, recipe.model.init)
    return model


def initialise_from_data(model: nn.Module, task: Task, train: Source) -> None:
    """Initialise a model that is made from data by prepared samples, evenly spaced over `train`."""
    if isinstance(model, InitialisedFromData):
        elements_per_sample = sum(x.numel() for x in task.example(1))
        count = min(len(train), max(1, MAX_INIT_ELEMENTS // elements_per_sample))
        batch = task.prepare(train.gather(torch.arange(count) * len(train) // count))
        model.init_from_data(*(batch[name] for name in task.inputs))


def build_architecture(recipe: Recipe, spec: Spec) -> nn.Module:
    """The registered model without initialisation, its layers narrowed as pruning left them.

    Raises:
        InputError: ``model.pruned`` does not fit the model.
    """
    from bigmodel_cli.models.adapters.pruned import narrow

    model: nn.Module = models.get(recipe.model.name)(spec, **recipe.model.options)
    return narrow(model, recipe.model.pruned) if recipe.model.pruned else model
