"""Loads the data section of a recipe: the data set and its splits."""

from __future__ import annotations

import inspect

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import DataSection, data_root
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.types import DataBundle, Source, Spec
from bigmodel_cli.data.subset import carve


def load_data(section: DataSection, like: Spec | None = None) -> DataBundle:
    """The data that `section` names.

    `like` is the spec of the checkpoint to continue from. Sources that take it, such as text, use its tokenizer.
    """
    entry = data.get(section.name)
    known = {"like": like} if "like" in inspect.signature(entry.function).parameters else {}
    return entry(data_root(section.dir), **known, **section.options)  # type: ignore[no-any-return]


def train_and_val(bundle: DataBundle, section: DataSection) -> tuple[Source, Source]:
    """The train and val splits: the data's own val split, or one carved from train by a seed."""
    if bundle.problem is not None:
        raise bundle.problem
    if "train" not in bundle.load:
        raise InputError(f"{section.name}: {', '.join(sorted(bundle.load))} but no train split", "expected train")
    train = bundle.load["train"]()
    if "val" in bundle.load:
        return train, bundle.load["val"]()
    return carve(train, section.val_fraction, section.split_seed)


def load_split(bundle: DataBundle, section: DataSection, name: str) -> Source:
    """One split by name, for evaluation.

    Raises:
        InputError: the data has no such split.
    """
    if name in ("train", "val") and "val" not in bundle.load:
        return train_and_val(bundle, section)[name == "val"]
    if name not in bundle.load:
        raise InputError(f"{section.name} has no {name} split", "it has train, val" + _others(bundle))
    return bundle.load[name]()


def _others(bundle: DataBundle) -> str:
    return "".join(f", {k}" for k in sorted(bundle.load) if k not in ("train", "val"))
