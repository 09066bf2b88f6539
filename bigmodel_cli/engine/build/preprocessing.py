"""How images are prepared for weights that bigmodel did not train: as the architecture's publishers did."""

from __future__ import annotations

from typing import Any

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import data, models
from bigmodel_cli.core.types import ImageSpec, Source, Spec, Task
from bigmodel_cli.engine.build.model import build_task


def published_spec(recipe: Recipe, like: Spec) -> Spec | None:
    """The spec of the weights published for the recipe's architecture, for data `like`; None if none are known."""
    meta = models.get(recipe.model.name).meta
    if "weights" in meta:
        return meta["weights"].spec  # type: ignore[no-any-return]
    return meta["published"](like, recipe.model.options) if "published" in meta else None  # type: ignore[no-any-return]


def at_image_size(recipe: Recipe, spec: Any) -> Any:
    """`spec` with the recipe's ``model.image_size``, if it has one.

    Raises:
        InputError: the data is not images.
    """
    side = recipe.model.image_size
    if side is None:
        return spec
    if not isinstance(spec, ImageSpec):
        raise InputError(f"--size {side} on {spec.kind}", "expected a model of images", "leave --size out")
    return spec.with_(height=side, width=side)


def unused_layout_note(recipe: Recipe, task: Task) -> str | None:
    """A note where ``placement.channels_last`` is set for inputs that are not images."""
    images = any(x.dim() == 4 for x in task.example(1))
    if images or recipe.placement.channels_last is not True:
        return None
    return f"placement.channels_last: no effect on {task.spec.kind}, only on images"


def with_preprocessing(recipe: Recipe, spec: Spec, train: Source, published: Spec | None) -> tuple[Task, list[str]]:
    """The task with a mean and deviation, and a line on where they are from, if the weights are another program's.

    `published` is the architecture's own spec; None if the weights are a checkpoint's, or nothing is known.
    """
    if not isinstance(spec, ImageSpec) or (published is None and spec.mean):
        return build_task(recipe, spec), []
    known = published is not None and recipe.start.preprocessing == "published"
    task = build_task(recipe, spec if known else spec.with_(mean=(), std=())).fit_spec(train)
    measured: ImageSpec = task.spec
    resized = f"{measured.height}x{measured.width}, {measured.interpolation}"
    resized += f", crop {measured.crop:.3g}" if measured.square is not None else ""
    mean, std = (", ".join(f"{x:.3g}" for x in values) for values in (measured.mean, measured.std))
    whose = "as published for the architecture" if known else "mean and deviation of the train split"
    return task, [f"preprocessing {whose}: {resized}, mean {mean}, deviation {std}"]


def size_options(recipe: Recipe, as_published: bool) -> dict[str, Any]:
    """Options of the recipe's data that suit ``model.image_size`` and, with `as_published`, the architecture's weights.

    Empty for data that has no such options: its images are resized when batches are prepared.
    """
    options: dict[str, Any] = {}
    weights = models.get(recipe.model.name).meta.get("weights") if as_published else None
    published = weights.spec if weights is not None else None
    if isinstance(published, ImageSpec) and published.square is not None:
        options = {"size": published.height, "crop": published.crop, "interpolation": published.interpolation}
    if recipe.model.image_size is not None:
        options["size"] = recipe.model.image_size
    fields = data.get(recipe.data.name).schema.model_fields
    return {key: value for key, value in options.items() if key in fields}
