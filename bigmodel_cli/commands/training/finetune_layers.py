"""The recipe layers of ``finetune``: the start, and defaults that fit the weights and the data."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.arguments.recipe_layers import task_in, tokenizer_layer
from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.core.resolve import Layer
    from bigmodel_cli.core.types import DataBundle, Source, Spec


@dataclass(frozen=True)
class StartLayers:
    """The layers of a fine-tuning recipe, and lines on the defaults that were chosen for the data."""

    layers: list[Layer]
    notes: list[str] = field(default_factory=list)


def start_layers(path: Path | None, pretrained: bool, start: dict[str, Any], given: list[Layer]) -> StartLayers:
    """The recipe saved in the checkpoint, then fine-tuning's own defaults, then the layers that were `given`.

    Length, batch and rate come last, where they were not given: they depend on the data.

    Raises:
        InputError: no start is named, or two are; or the model is not the checkpoint's, or is not
            named where the file does not name it either.
    """
    from bigmodel_cli.core.registry import methods
    from bigmodel_cli.core.resolve import Layer

    if (path is None) != pretrained:
        what = "no weights to start from" if path is None else "--from and --pretrained together"
        raise InputError(what, "expected --from CKPT or MODEL --pretrained", "bigmodel finetune --help")
    lr = methods.get(start["method"]).meta["lr"]
    defaults = Layer("finetune", {"train": {"epochs": 5}, "optimizer": {"name": "adamw", "lr": lr}})
    now, late = _with_late_augment(given)
    if path is None:
        layers = [defaults, Layer("--pretrained", {"start": {"pretrained": True, **start}}), *now]
    else:
        layers = _checkpoint_layers(path, [defaults, Layer("--from", {"start": start})], now)
    fitted = _fitted(layers, given)
    return replace(fitted, layers=[*fitted.layers, *late])


def _checkpoint_layers(path: Path, defaults: list[Layer], given: list[Layer]) -> list[Layer]:
    from bigmodel_cli.core.resolve import Layer, resolve
    from bigmodel_cli.engine.build.foreign_weights import exported_model_section, is_foreign
    from bigmodel_cli.engine.build.load import load_meta
    from bigmodel_cli.engine.build.locate import checkpoint_file

    path = checkpoint_file(path)
    foreign = is_foreign(path)
    if foreign:
        kept = {"model": exported_model_section(path)}
        if not kept["model"] and not any("name" in layer.values.get("model", {}) for layer in given):
            hint = f"bigmodel finetune resnet18 --from {path} --data mnist"
            raise InputError(f"{path}: the file does not name its model", "expected MODEL", hint)
    else:
        saved = load_meta(path)["recipe"]
        kept = {k: saved[k] for k in ("model", "data", "loss", "augment")}
        if (task := task_in(given)) is not None and task != saved["data"].get("task"):
            del kept["loss"]  # another task has another default
    from_ = Layer("--from", {"start": {"checkpoint": str(path.resolve())}})
    layers = [Layer(str(path), kept), *defaults, from_, *given]
    if foreign:
        layers.append(tokenizer_layer(path.with_name("tokenizer.json"), layers))
        return [*layers, _inferred_layer(path, layers)]
    model = resolve(layers).recipe.model.name
    if model != kept["model"]["name"]:
        raise InputError(
            f"MODEL is {model}", f"{path} holds a {kept['model']['name']}", f"bigmodel finetune --from {path}"
        )
    return layers


def _inferred_layer(path: Path, layers: list[Layer]) -> Layer:
    """The model options that were not given, inferred from the shapes of foreign weights."""
    from bigmodel_cli.core.resolve import Layer, resolve
    from bigmodel_cli.engine.build.data import load_data
    from bigmodel_cli.engine.build.foreign_weights import infer_options
    from bigmodel_cli.engine.build.preprocessing import at_image_size

    resolved = resolve(layers)
    given = [key for section, key in resolved.origin if section == "model"]
    spec = at_image_size(resolved.recipe, load_data(resolved.recipe.data, task=resolved.recipe.task).spec)
    options = infer_options(resolved.recipe, given, spec, path)
    return Layer(str(path), {"model": options} if options else {})


TRAINING = frozenset({("train", "epochs"), ("train", "max_steps"), ("train", "batch_size"), ("train", "ema_decay")})
"""Recipe fields that ask for gradient steps where they are given, as do those of the sections below."""
TRAINING_SECTIONS = frozenset({"optimizer", "schedule", "augment", "loss"})


def _fitted(layers: list[Layer], given: list[Layer]) -> StartLayers:
    """`layers`, then the images' size of the weights, and the length, batch and rate for the data, if not `given`."""
    from bigmodel_cli.core.resolve import Layer, resolve
    from bigmodel_cli.engine.build.finetune_defaults import has_classes
    from bigmodel_cli.engine.build.preprocessing import size_options
    from bigmodel_cli.engine.build.text_defaults import predicts_tokens, suitable_pooling

    named = {(section, key) for layer in given for section, values in layer.values.items() for key in values}
    recipe = resolve(layers).recipe
    sizes = size_options(recipe, recipe.start.pretrained or _is_foreign(recipe))
    sizes = {key: value for key, value in sizes.items() if ("data", key) not in named}
    pooling, told = suitable_pooling(recipe) if ("model", "pooling") not in named else ({}, [])
    own = {section: options for section, options in (("data", sizes), ("model", pooling)) if options}
    layers = [*layers, Layer("the weights", own)] if own else layers
    if not has_classes(recipe) and not predicts_tokens(recipe):
        return StartLayers(layers)
    suitable = _suitable_for_tokens if predicts_tokens(recipe) else _suitable
    values, notes = suitable(resolve(layers).recipe, named)
    values = {s: {k: v for k, v in part.items() if (s, k) not in named} for s, part in values.items()}
    fitting = Layer("finetune", {s: part for s, part in values.items() if part})
    return StartLayers([*layers, fitting], [*notes, *told])


def _with_late_augment(given: list[Layer]) -> tuple[list[Layer], list[Layer]]:
    """`given` without options of an augmentation that none of them names, and layers of those options.

    They may be of the augmentation that is yet to be chosen for the data: ``--set augment.flip=true``.
    """
    if any("name" in layer.values.get("augment", {}) for layer in given):
        return given, []
    rest = [replace(at, values={k: v for k, v in at.values.items() if k != "augment"}) for at in given]
    late = [replace(at, values={"augment": at.values["augment"]}) for at in given if "augment" in at.values]
    return rest, late


def _is_foreign(recipe: Recipe) -> bool:
    from bigmodel_cli.engine.build.foreign_weights import is_foreign

    return recipe.start.checkpoint is not None and is_foreign(Path(recipe.start.checkpoint))


def _suitable(recipe: Recipe, named: set[tuple[str, str]]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The sections of a recipe that suit its data, and lines on them; `named` are the fields that the user gave."""
    from bigmodel_cli.core.registry import augments, methods
    from bigmodel_cli.engine.build.finetune_defaults import (
        AUGMENTED_STEPS,
        STEPS,
        suitable_augment,
        suitable_average,
        suitable_length,
        suitable_lr,
        suitable_options,
        suitable_statistics,
    )
    from bigmodel_cli.engine.build.text_defaults import published_text_spec
    from bigmodel_cli.engine.device.ranks import read_ranks

    trained = _checkpoint_spec(recipe)
    bundle, train, _ = _read(recipe, trained or published_text_spec(recipe))
    samples, spec = len(train), bundle.spec
    trains = bool(named & TRAINING) or any(section in TRAINING_SECTIONS for section, _ in named)
    trains |= read_ranks().world > 1  # the solver runs in one process
    trains |= recipe.privacy.epsilon is not None  # and adds no noise
    trains |= recipe.loss.name != "cross_entropy" or bool(augments.get(recipe.augment.name).meta.get("changes", True))
    new_head = trained is None or set(trained.classes) != set(spec.classes)
    free = trained is None and ("augment", "name") not in named and recipe.augment.name == "none"
    augment, notes = suitable_augment(recipe, train, spec) if free else {}, list[str]()
    if ("augment", "flip") not in named:
        augment, notes = _without_mirroring(recipe, bundle, train, augment)
    given = recipe.train.batch_size if ("train", "batch_size") in named else None
    length = suitable_length(samples, given, AUGMENTED_STEPS if augment else STEPS)
    values: dict[str, dict[str, Any]] = {
        "train": {"batch_size": length.batch_size},
        "start": suitable_options(recipe, samples, trains, new_head),
    }
    if ("optimizer", "name") not in named:
        values["optimizer"] = {"lr": suitable_lr(recipe, spec) if trained is None else _method_lr(recipe)}
    if trained is None:
        values["start"] |= suitable_statistics(recipe, spec, samples)
        epochs = recipe.train.epochs if ("train", "epochs") in named else length.epochs
        steps = min(epochs * math.ceil(samples / length.batch_size), recipe.train.max_steps or sys.maxsize)
        values["train"] |= suitable_average(recipe, spec, samples, steps)
    if augment:
        values["augment"] = augment
    if ("train", "epochs") not in named:
        values["train"] |= {"epochs": length.epochs, "patience": length.patience}
    only_solves = values["start"].get("solve") and methods.get(recipe.start.method).meta.get("features")
    return values, notes if only_solves else [_describe(samples, values, named), *notes]


def _without_mirroring(
    recipe: Recipe, bundle: DataBundle, train: Source, augment: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """`augment` without mirror images where left and right tell the classes apart, and a line on it."""
    from bigmodel_cli.engine.training.orientation import orientation

    looks = augment.get("flip") and recipe.privacy.epsilon is None  # which would not be private
    found = orientation(recipe, bundle, train) if looks else None
    if found is None or not found.matters:
        return augment, []
    what = f"{found.share:.0%} of {found.count} images fit their class better than their mirror images do"
    return {**augment, "flip": False}, [f"no mirror images: {what} (augment.flip=true mirrors them all the same)"]


def _suitable_for_tokens(recipe: Recipe, named: set[tuple[str, str]]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """:func:`_suitable` for a model that continues or translates texts."""
    from bigmodel_cli.engine.build.text_defaults import (
        published_text_spec,
        suitable_token_length,
        suitable_token_lr,
    )

    trained = _checkpoint_spec(recipe)
    like = trained or published_text_spec(recipe)
    _, train, tokens = _read(recipe, like)
    samples = len(train)
    given = recipe.train.batch_size if ("train", "batch_size") in named else None
    length = suitable_token_length(samples, tokens, given)
    values: dict[str, dict[str, Any]] = {"train": {"batch_size": length.batch_size}, "start": {}}
    if ("optimizer", "name") not in named:
        values["optimizer"] = {"lr": suitable_token_lr(recipe, published=trained is None)}
    if ("train", "epochs") not in named:
        values["train"] |= {"epochs": length.epochs, "patience": length.patience}
    return values, [_describe(samples, values, named)]


def _method_lr(recipe: Recipe) -> float:
    from bigmodel_cli.core.registry import methods

    return float(methods.get(recipe.start.method).meta["lr"])


def _checkpoint_spec(recipe: Recipe) -> Spec | None:
    """The spec in the checkpoint to start from; None for weights of another program."""
    from bigmodel_cli.engine.build.load import load_meta
    from bigmodel_cli.engine.build.model import build_spec

    if recipe.start.checkpoint is None or _is_foreign(recipe):
        return None
    return build_spec(load_meta(Path(recipe.start.checkpoint))["input"], recipe.start.checkpoint)


def _read(recipe: Recipe, like: Spec | None) -> tuple[DataBundle, Source, int]:
    """The recipe's data, its train split, and the tokens of a sample if it is text."""
    from bigmodel_cli.commands.display.progress import WaitBars
    from bigmodel_cli.core.sources import VariableLengthSource
    from bigmodel_cli.core.specs import TextSpec
    from bigmodel_cli.engine.build.data import load_data, train_and_val

    with WaitBars():
        bundle = load_data(recipe.data, like, recipe.task, fits=True)
        train, _ = train_and_val(bundle, recipe.data.of_fold(1))
    mean = float(train.lengths.double().mean()) if isinstance(train, VariableLengthSource) else 0.0
    window = bundle.spec.context if isinstance(bundle.spec, TextSpec) else 1
    return bundle, train, math.ceil(mean) or window


def _describe(samples: int, values: dict[str, dict[str, Any]], named: set[tuple[str, str]]) -> str:
    """A line on the defaults that the data decided."""
    size, epochs = values["train"]["batch_size"], values["train"].get("epochs")
    parts = [f"{samples:,} samples: batches of {size}"]
    if epochs is not None:
        patience = values["train"]["patience"]
        parts.append(f"{epochs} epochs of {-(-samples // size)} steps, {patience} without improvement end it")
    if "optimizer" in values and ("optimizer", "lr") not in named:
        head = values["start"].get("head_rate", 1.0)
        how = ", or is solved for first if it is linear" if values["start"].get("solve") else ""
        faster = f"; a new head has {head:g} times that{how}" if head != 1 else ""
        parts.append(f"learning rate {values['optimizer']['lr']:g}{faster}")
    if values["start"].get("statistics") == "keep":
        parts.append("BatchNorm keeps its statistics")
    if "ema_decay" in values["train"]:
        parts.append("weights averaged")
    if augment := values.get("augment"):
        mirrored = " with mirror images (augment.flip=false where left and right differ)" if augment["flip"] else ""
        side = f" to {augment['side']} pixels" if "side" in augment else ""
        parts.append(f"augmentation {augment['name']}{side}{mirrored}")
    return "; ".join(parts) + " (--batch-size, --epochs, --lr)"
