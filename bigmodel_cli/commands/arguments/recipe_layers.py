"""What is typed on a command line, as layers of a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.arguments.recipe_files import find_recipe
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.columns import read_columns
from bigmodel_cli.core.specs import ImageSpec

if TYPE_CHECKING:
    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.core.resolve import Layer
    from bigmodel_cli.engine.build.load import TrainedModel


def named_layers(model: str | None, recipe: Path | None) -> list[Layer]:
    """The recipe file and the model's name; MODEL may be either."""
    from bigmodel_cli.core.resolve import Layer, document_layer
    from bigmodel_cli.core.strict_yaml import read_yaml

    layers = []
    if model is not None and not model.startswith("hf:") and ("/" in model or model.endswith((".yaml", ".yml"))):
        layers.append(document_layer(read_yaml(find_recipe(Path(model))), model))
        model = None
    if recipe is not None:
        layers.append(document_layer(read_yaml(find_recipe(recipe)), str(recipe)))
    if model is not None:
        layers.append(Layer("MODEL", {"model": {"name": model}}))
    return layers


@dataclass(frozen=True)
class Known:
    """What is known of further data: what its labels are, and the columns of the table that a checkpoint learned from.

    `columns` is None without a checkpoint, and empty where its columns were found by their names.
    """

    task: str | None = None
    columns: Mapping[str, str] | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Known:
        """Of the data section of a checkpoint's recipe."""
        return cls(data.get("task"), data.get("columns") or {})


def resolve_data_path(
    value: str, columns: str | Mapping[str, str] | None = None, known: Known = Known()
) -> dict[str, Any] | None:
    """The data section for ``--data PATH`` and ``--columns``; None where `value` names a data set.

    A path has a separator or a suffix in it, or exists and is no data set's name. A table that has the columns of a
    checkpoint's table is read by them, and any other by the usual names.

    Raises:
        InputError: there is nothing at the path.
    """
    from bigmodel_cli.core.files.remote_files import is_remote
    from bigmodel_cli.core.registry import data
    from bigmodel_cli.data.user_path import UserPath, source_for

    given = UserPath(value)
    elsewhere = given.is_address or given.is_pattern or is_remote(value)
    is_path = "/" in value or os.sep in value or elsewhere
    if not is_path and (value in data.found or not (given.path.exists() or given.suffix)):
        return None
    if not elsewhere and not given.path.exists():
        raise InputError(f"--data {value}: no such file or folder", "expected your own data, or the name of a data set",
                         "bigmodel data lists the names")  # fmt: skip
    named = read_columns(columns) if isinstance(columns, str) else columns
    trained = known.columns if named is None else None
    fits = bool(trained) and UserPath(value, trained or {}).has_columns(tuple(trained or {}))
    source = source_for(value, trained if fits else named, known.task)
    if source is None:
        return None
    options: dict[str, Any] = {}
    if given.table is None:
        options = {"columns": None, "group_by": None}
    elif trained is not None:
        options = {"columns": dict(trained) if fits else None}
        if trained and not fits:
            console.note(f"{value}: without the columns of the training data; read by the usual names")
    fields = data.get(source).schema.model_fields
    options = {name: option for name, option in options.items() if name in fields}
    # Absolute, so that the checkpoint finds its data again from any folder.
    stays = elsewhere and not given.is_pattern
    return {"name": source, "path": value if stays else str(given.path.absolute()), **options}


def task_in(layers: list[Layer]) -> str | None:
    """The last ``data.task`` in `layers`."""
    named = [layer.values["data"]["task"] for layer in layers if "task" in layer.values.get("data", {})]
    return named[-1] if named else None


def checkpoint_recipe(trained: TrainedModel, layers: list[Layer]) -> Recipe:
    """The recipe saved in a checkpoint, with `layers` over it."""
    from bigmodel_cli.core.resolve import Layer, resolve

    saved = Layer(str(trained.path), trained.meta["recipe"])
    spec = trained.task.spec
    # Trained on whole images: those of another folder are not cropped either.
    if isinstance(spec, ImageSpec) and spec.square is None:
        for layer in layers:
            if layer.values.get("data", {}).get("name") in ("image_folder", "image_targets"):
                layer.values["data"].update(size=spec.height, crop=1.0, channels=spec.channels)
    return resolve([saved, *layers]).recipe


def with_image_size(layers: list[Layer]) -> list[Layer]:
    """`layers`, where image files are decoded at ``model.image_size`` if it is given and ``data.size`` is not."""
    from bigmodel_cli.core.resolve import Layer, resolve
    from bigmodel_cli.engine.build.preprocessing import size_options

    named = {(section, key) for layer in layers for section, values in layer.values.items() for key in values}
    if ("model", "image_size") not in named or ("data", "size") in named:
        return layers
    return [*layers, Layer("--size", {"data": size_options(resolve(layers).recipe, as_published=False)})]


def expand_hub_model(layers: list[Layer], weights: bool) -> list[Layer]:
    """`layers`, where the model is ``hf:FOLDER`` or ``hf:NAME`` with the options and tokenizer in its files."""
    from bigmodel_cli.core.resolve import Layer

    names = [str(layer.values.get("model", {}).get("name", "")) for layer in layers]
    if not any(name.startswith("hf:") for name in names):
        return layers
    from bigmodel_cli.engine.build.huggingface_hub import huggingface_model, is_huggingface_source

    found = [i for i, name in enumerate(names) if is_huggingface_source(name)]
    if not found:
        return layers
    last = found[-1]
    old = layers[last]
    section, folder = huggingface_model(old.values["model"]["name"], weights, _task_of_data(layers))
    values = {**old.values, "model": {**old.values["model"], **section}}
    expanded = [*layers[:last], Layer(old.source, values, old.lines), *layers[last + 1 :]]
    return [*expanded, tokenizer_layer(folder / "tokenizer.json", expanded, start=weights)]


def _task_of_data(layers: list[Layer]) -> str:
    """The task that the data of `layers` is for; empty if the data is not named, or fits several tasks."""
    from bigmodel_cli.core.registry import data

    named = [layer.values["data"]["name"] for layer in layers if "name" in layer.values.get("data", {})]
    return str(data.get(named[-1]).meta.get("task", "")) if named else ""


def tokenizer_layer(file: Path, layers: list[Layer], start: bool = False) -> Layer:
    """The tokenizer that lies beside weights, for data that takes a tokenizer and was given none.

    With `start`, data whose default is the tokenizer of the starting weights is left as it is.
    """
    from typing import Literal, get_origin

    from bigmodel_cli.core.registry import data
    from bigmodel_cli.core.resolve import Layer, resolve

    resolved = resolve(layers)
    field = data.get(resolved.recipe.data.name).schema.model_fields.get("tokenizer")
    accepts_file = field is not None and get_origin(field.annotation) is not Literal
    automatic = start and field is not None and field.default == "auto"
    given = ("data", "tokenizer") in resolved.origin
    use = file.is_file() and accepts_file and not automatic and not given
    return Layer(str(file), {"data": {"tokenizer": str(file.absolute())}} if use else {})
