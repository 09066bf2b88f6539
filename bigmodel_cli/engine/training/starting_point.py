"""Choose the initial weights of a run: a checkpoint to resume, a trained model, foreign weights or random ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bigmodel_cli.core.answering import FitsToVal
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.output_values import uncalibrated
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import methods, models
from bigmodel_cli.core.types import DataBundle, ImageSpec, Source, Task
from bigmodel_cli.engine.build.compatibility import first_difference
from bigmodel_cli.engine.build.foreign_weights import is_foreign, load_foreign_weights
from bigmodel_cli.engine.build.load import TrainedModel, load_trained, recipe_and_spec
from bigmodel_cli.engine.build.locate import check_pin, checkpoint_file
from bigmodel_cli.engine.build.model import build_model, build_task, check_loss, initialise_from_data, task_name
from bigmodel_cli.engine.build.preprocessing import at_image_size, published_spec, with_preprocessing
from bigmodel_cli.engine.build.published_weights import load_pretrained
from bigmodel_cli.engine.build.transfer import transfer


def check_task(recipe: Recipe) -> None:
    """Check that the data and the fine-tuning method support the model's task.

    Raises:
        InputError: one of them is for another task.
    """
    check_loss(recipe)
    task, method = task_name(recipe), recipe.start.method
    required = methods.get(method).meta.get("task", task)
    if task != required:
        problem = f"{recipe.model.name} is for {task}".replace("_", " ")
        hint = "bigmodel models and bigmodel data list the choices"
        raise InputError(problem, f"{method} is for {required}".replace("_", " "), hint)


def trained_start(recipe: Recipe) -> TrainedModel | None:
    """Load the trained model that the recipe starts from; None for random and for foreign weights."""
    if not recipe.start.trained:
        if recipe.start.sha256 is not None:
            raise InputError("start.sha256 without a start", "expected start.checkpoint or start.pretrained too")
        return None
    if recipe.start.checkpoint is None:
        return load_pretrained(recipe)
    path = Path(recipe.start.checkpoint)
    check_pin(checkpoint_file(path), recipe.start.sha256)
    if is_foreign(path):
        return None
    trained = load_trained(path)
    if models.get(trained.recipe.model.name).meta.get("combines"):
        hint = "fine-tune its members, then bigmodel ensemble"
        raise InputError(f"{trained.path} is an ensemble", "expected one model to train further", hint)
    return trained


def task_and_model(
    recipe: Recipe, bundle: DataBundle, train: Source, resumed: Mapping[str, Any] | None, trained: TrainedModel | None
) -> tuple[Task, nn.Module, list[str]]:
    """Build the task and the model with its initial weights, and collect notes for the user."""
    if resumed is not None:
        _check_same_data(resumed["meta"]["data"], bundle)
        _, spec = recipe_and_spec(resumed, "--resume")
        return build_task(recipe, uncalibrated(spec)), build_model(recipe, spec), []
    if not recipe.start.trained:
        task = build_task(recipe, at_image_size(recipe, bundle.spec)).fit_spec(train)
        task = _fit_labels(task, bundle, train)
        model = build_model(recipe, task.spec)
        initialise_from_data(model, task, train)
        return task, model, []
    published = None if trained and not recipe.start.pretrained else published_spec(recipe, bundle.spec)
    base = at_image_size(recipe, trained.task.spec if trained else published or bundle.spec)
    spec, notes = (trained.task if trained else build_task(recipe, base)).adopt(base, bundle.spec)
    task, line = with_preprocessing(recipe, spec, train, published)
    task = _fit_labels(task if trained else task.fit_spec(train), bundle, train)
    model = build_model(recipe, task.spec)
    if trained is None:
        path = Path(str(recipe.start.checkpoint))
        channels = task.spec.channels if isinstance(task.spec, ImageSpec) else 0
        notes += load_foreign_weights(model, path, models.get(recipe.model.name).meta, channels)
    else:
        notes = [*trained.notes, *notes, *transfer(model, trained, task.spec)]
    return task, model, [*notes, *line]


def _fit_labels(task: Task, bundle: DataBundle, train: Source) -> Task:
    matched = task.for_data(bundle.spec)
    return matched.fit_labels(train) if isinstance(matched, FitsToVal) else task


def _check_same_data(saved: Mapping[str, Any], bundle: DataBundle) -> None:
    """Check that the data is unchanged since the checkpoint: class names and order, shapes, and every byte.

    Raises:
        InputError: it has changed.
    """
    hint = "put the data back, or start a new run with --out"
    saved_spec: Any = saved.get("spec")
    spec = bundle.spec.to_dict() if isinstance(saved_spec, Mapping) else {}
    for key, value in spec.items():
        if saved_spec.get(key) != value:
            difference = first_difference(key, saved_spec.get(key), value, "checkpoint", "data")
            raise InputError(f"--resume: {difference}", hint=hint)
    if saved.get("fingerprint") != bundle.fingerprint:
        fingerprints = [str(p)[:12] for p in (saved.get("fingerprint"), bundle.fingerprint)]
        problem = f"--resume: the data has changed: fingerprint {fingerprints[0]} in the checkpoint"
        raise InputError(problem, f"{fingerprints[1]} in the data", hint)
