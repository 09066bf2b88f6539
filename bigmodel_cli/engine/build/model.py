"""Builds the task and the model of a recipe for the spec of its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.networks import InitialisedFromData
from bigmodel_cli.core.output_values import marked
from bigmodel_cli.core.readers.tables import table_suffix
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import augments, data, losses, models, tasks
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


def task_name(recipe: Recipe) -> str:
    """The task of a run: that of ``data.task``, else that of the data, else that of the model.

    Raises:
        InputError: the model is for another task, and the task does not use the models of that one.
    """
    of_model = str(models.get(recipe.model.name).meta["task"])
    of_data = data.get(recipe.data.name).meta
    name = recipe.data.task or str(of_data.get("task", of_model))
    if name == of_model or of_model in tasks.get(name).meta.get("over", ()):
        return name
    problem = f"{recipe.model.name} is for {_plain(of_model)}"
    what = "--task" if recipe.data.task else f"data {recipe.data.name}"
    expected = f"{what} is for {_plain(name)}" if not recipe.data.task else f"expected a model for {_plain(name)}"
    hint = "bigmodel models and bigmodel data list the choices"
    if table_suffix(str(recipe.data.options.get("path", ""))):
        hint += "; --columns text=NAME,label=NAME says what the columns of a table hold"
    raise InputError(problem, expected, hint)


def _plain(task: str) -> str:
    return task.replace("_", " ")


def check_loss(recipe: Recipe) -> None:
    """Check that the loss is for the kind of answers of the recipe's task, where both say theirs.

    Raises:
        InputError: it is not; the losses that are, are listed.
    """
    task = tasks.get(task_name(recipe))
    kind = task.meta.get("answers")
    fit = losses.get(recipe.loss.name).meta.get("answers")
    if kind is not None and fit is not None and kind not in fit:
        known = [name for name, found in losses.found.items() if kind in found.meta.get("answers", (kind,))]
        raise InputError(f"loss {recipe.loss.name} for {_plain(task.name)}", "expected " + " or ".join(known))


def build_task(recipe: Recipe, spec: Spec) -> Task:
    """The recipe's task, with its loss and augmentation.

    Raises:
        InputError: the augmentation, the loss or the model is for another kind of data or task.
    """
    entry = tasks.get(task_name(recipe))
    check_loss(recipe)
    loss = losses.get(recipe.loss.name)(**recipe.loss.options)
    augmentation = augments.get(recipe.augment.name)
    fits = augmentation.meta.get("kind", spec.kind) == spec.kind and entry.meta.get("augments", True)
    if augmentation.meta.get("changes", True) and not fits:
        of = spec.kind if entry.meta.get("augments", True) else _plain(entry.name)
        what = f"augment.name = {augmentation.name}, which is not for {of}"
        raise InputError(what, hint="bigmodel recipe fields augment")
    augment = augmentation(**recipe.augment.options)
    wanted = tasks.get(models.get(recipe.model.name).meta["task"]).meta["spec_type"].kind
    if wanted != spec.kind:
        what = f"{recipe.model.name} is for {wanted} data"
        raise InputError(what, f"data {recipe.data.name} is {spec.kind}", "bigmodel models")
    if entry.meta.get("answers") == "classes":
        spec = marked(spec, losses.get(recipe.loss.name).meta.get("probabilities", True))
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
    """The registered model without initialisation, its layers altered as the recipe says.

    Raises:
        InputError: ``model.pruned`` or ``model.batchnorm`` does not fit the model.
    """
    from bigmodel_cli.models.adapters.altered import altered

    model: nn.Module = models.get(recipe.model.name)(spec, **recipe.model.options)
    return altered(model, recipe.model.model_dump())
