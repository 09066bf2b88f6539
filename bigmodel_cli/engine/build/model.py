"""Recipe and spec to task and model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import augments, losses, models, tasks
from bigmodel_cli.core.types import SPECS, Source, Spec, Task

SHOWN = 1 << 23  # numbers of the train split that a model may begin from: some 2,700 images of CIFAR


def head_of(recipe: Recipe) -> str:
    """The name of the last layer of the recipe's model, as it was registered."""
    return str(models.get(recipe.model.name).meta["head"])


def build_spec(values: Mapping[str, Any], source: str) -> Any:
    """A spec from the plain values in the checkpoint that `source` names.

    Raises:
        InputError: they are not those of a spec.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in SPECS:
        raise InputError(f"{source}: input of kind {kind!r}", "expected " + " or ".join(SPECS))
    try:
        return SPECS[kind].from_dict({k: v for k, v in values.items() if k != "kind"})
    except InputError as error:
        raise InputError(f"{source}: {error.what}", error.expected, "restore it from a copy") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{source}: not a spec of kind {kind!r} ({error})", hint="restore it from a copy") from None


def build_task(recipe: Recipe, spec: Spec) -> Task:
    """The task that the model was registered for, with the recipe's loss and augmentation."""
    loss = losses.get(recipe.loss.name)(**recipe.loss.options)
    chosen = augments.get(recipe.augment.name)
    if chosen.meta.get("changes", True) and chosen.meta.get("kind", "image") != spec.kind:
        what = f"augment.name = {chosen.name}, which is not for {spec.kind}"
        raise InputError(what, hint="bigmodel recipe schema")
    augment = chosen(**recipe.augment.options)
    entry = tasks.get(models.get(recipe.model.name).meta["task"])
    if entry.meta["kind"] != spec.kind:
        what = f"{recipe.model.name} is for {entry.meta['kind']} data"
        raise InputError(what, f"data {recipe.data.name} is {spec.kind}", "bigmodel models")
    return entry(spec, loss, augment)  # type: ignore[no-any-return]


def build_model(recipe: Recipe, spec: Spec) -> nn.Module:
    """The model, randomly initialised from torch's generator as it stands."""
    from bigmodel_cli.models.layers.initialise import initialise

    model = architecture(recipe, spec)
    initialise(model, recipe.model.init)
    return model


def show(model: nn.Module, task: Task, train: Source) -> None:
    """Initialise a model that has ``init_from_data`` from prepared samples spread evenly over `train`."""
    init_from_data = getattr(model, "init_from_data", None)
    if init_from_data is not None:
        each = sum(x.numel() for x in task.example(1))
        count = min(len(train), max(1, SHOWN // each))
        batch = task.prepare(train.gather(torch.arange(count) * len(train) // count))
        init_from_data(*(batch[name] for name in task.inputs))


def architecture(recipe: Recipe, spec: Spec) -> nn.Module:
    """The model as it was registered, its layers as narrow as pruning left them.

    Raises:
        InputError: ``model.pruned`` does not fit the model.
    """
    from bigmodel_cli.models.adapters.pruned import narrow

    model: nn.Module = models.get(recipe.model.name)(spec, **recipe.model.options)
    return narrow(model, recipe.model.pruned) if recipe.model.pruned else model
