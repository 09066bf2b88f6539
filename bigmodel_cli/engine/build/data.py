"""Loads the data section of a recipe: the data set and its splits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.remote_files import is_remote, local_copy
from bigmodel_cli.core.recipe import DataSection, data_root
from bigmodel_cli.core.registry import data, tasks
from bigmodel_cli.core.sources import ContentSource, GroupedSource, LabelledSource, ValuedSource
from bigmodel_cli.core.types import DataBundle, Source, Spec
from bigmodel_cli.data.folds import hold_out
from bigmodel_cli.data.subset import carve

FOLD = "fold"
"""The split that a run of cross-validation holds out."""

_opened: ContextVar[dict[Any, DataBundle] | None] = ContextVar("opened data", default=None)


@contextmanager
def reading_once() -> Iterator[None]:
    """Within it, data that is loaded again as it was loaded last is not read again: its files must not change."""
    before = _opened.set({})
    try:
        yield
    finally:
        _opened.reset(before)


def load_data(
    section: DataSection, like: Spec | None = None, task: str | None = None, fits: bool = False
) -> DataBundle:
    """The data that `section` names.

    `like` is the spec of the checkpoint to continue from. Sources that take it, such as text, use its tokenizer. With
    `fits`, a new model is fitted to the data, so that a source may read it otherwise than the checkpoint does. Sources
    that take ``val_fraction`` and ``split_seed`` split val off themselves, before they cut texts into samples.
    `task` is the name of the run's task. Sources that take it read their labels, or cut their samples, for it.

    Raises:
        InputError: ``data.task`` is no task, or this data has one class a sample only.
    """
    opened, asked = _opened.get(), (repr(section.model_dump(exclude={"folds", "hold_out"})), like, task, fits)
    if opened is None:
        return _load(section, like, task, fits)
    if asked not in opened:
        opened.clear()
        opened[asked] = _load(section, like, task, fits)
    return opened[asked]


def _load(section: DataSection, like: Spec | None, task: str | None, fits: bool) -> DataBundle:
    entry = data.get(section.name)
    parameters = inspect.signature(entry.function).parameters
    special = section.task is not None and tasks.get(section.task).meta.get("over")
    if special and "task" not in parameters and entry.meta.get("task") != section.task:
        what = f"data.task = {section.task}"
        raise InputError(what, f"data {section.name} has no such labels", "your own data: --data PATH")
    offered: dict[str, Any] = {"like": like, "task": section.task or task, "fits": fits or None}
    offered |= {"val_fraction": section.val_fraction, "split_seed": section.split_seed}
    known = {key: value for key, value in offered.items() if value is not None and key in parameters}
    options = dict(section.options)
    if is_remote(str(options.get("path", ""))):
        options["path"] = str(local_copy(options["path"]))
    return entry(data_root(section.dir), **known, **options)  # type: ignore[no-any-return]


def unused_split_note(bundle: DataBundle, section: DataSection) -> str | None:
    """A note where fields of `section` say how val is split off, and the data has a val split of its own."""
    if "val" not in bundle.load or "split_seed" in inspect.signature(data.get(section.name).function).parameters:
        return None
    values, fields = section.model_dump(), DataSection.model_fields
    given = [f"data.{key}" for key in ("val_fraction", "split_seed") if values[key] != fields[key].default]
    return f"{' and '.join(given)}: not used, since the data has a val split" if given else None


def shared_samples_note(bundle: DataBundle, train: Source, other: Source, name: str = "val") -> str | None:
    """A note where samples of the data's own split `name` are in train too: the same text, or the same group."""
    if name not in bundle.load or not (isinstance(train, GroupedSource) and isinstance(other, GroupedSource)):
        return None
    shared = int(torch.isin(other.groups, train.groups).sum())
    if not shared:
        return None
    of = f"{shared:,} of {len(other):,} samples"
    return f"{name}: {of} are in train too (the same text or group), so its score flatters"


def conflicting_labels_note(source: Source, name: str, classes: Sequence[str]) -> str | None:
    """A note where samples of the split `name` are the same, as the same text or image, and have other labels."""
    if not isinstance(source, ContentSource) or not isinstance(source, (LabelledSource, ValuedSource)):
        return None
    contents, one_each = source.contents, isinstance(source, LabelledSource)
    labels = source.labels if isinstance(source, LabelledSource) else _numbered(source.label_values)
    found, place = torch.unique(contents, return_inverse=True)
    if len(found) == len(contents):
        return None
    ends = labels.new_full((2, len(found)), torch.iinfo(torch.int64).max)
    for end, values in zip(ends, (labels, -labels), strict=True):
        end.scatter_reduce_(0, place, values, "amin")  # the lowest label of each content, and minus the highest
    differs = (ends[0] != -ends[1])[place]
    count = int(differs.sum())
    if not count:
        return None
    first = int(differs.nonzero()[0])
    second = int(((place == place[first]) & (labels != labels[first])).nonzero()[0])
    shown = [f"{source.name(i)} ({classes[int(labels[i])]})" if one_each else source.name(i) for i in (first, second)]
    return f"{name}: {count:,} of {len(contents):,} samples occur under several labels, as {' and '.join(shown)}"


def _numbered(values: Tensor) -> Tensor:
    """(N,) int64: a number for each of the different rows of `values` (N,K)."""
    return torch.unique(values, dim=0, return_inverse=True)[1]


def train_and_val(bundle: DataBundle, section: DataSection) -> tuple[Source, Source]:
    """The train and val splits: the data's own val split, or one carved from train; train is without ``data.hold_out``.

    Raises:
        InputError: the data has no train split, or a class is too small to be in both; or ``data.folds`` names no fold.
    """
    train, val = pool_and_val(bundle, section)
    whole = section.folds is None and section.hold_out is None
    return (train if whole else _hold_out(train, section)[0]), val


def pool_and_val(bundle: DataBundle, section: DataSection) -> tuple[Source, Source]:
    """The train and val splits as they are without ``data.folds``: its folds are parts of this train split."""
    if bundle.problem is not None:
        raise bundle.problem
    if "train" not in bundle.load:
        raise InputError(f"{section.name}: {', '.join(sorted(bundle.load))} but no train split", "expected train")
    train = bundle.load["train"]()
    if "val" in bundle.load:
        return train, bundle.load["val"]()
    return carve(train, section.val_fraction, section.split_seed, section.carve, bundle.spec.classes)


def _hold_out(train: Source, section: DataSection) -> tuple[Source, Source]:
    if section.folds is None or section.hold_out is None:
        missing = "data.hold_out" if section.folds is not None else "data.folds"
        raise InputError(f"{missing} is not given", "expected data.folds and data.hold_out", "bigmodel train --folds K")
    return hold_out(train, section.folds, section.hold_out, section.split_seed)


def load_split(bundle: DataBundle, section: DataSection, name: str) -> Source:
    """One split by name, for evaluation; "all" is the whole train split, with what would be carved from it.

    "fold" is what a run of ``--folds`` held out.

    Raises:
        InputError: the data has no such split.
    """
    if name == "all":
        return bundle.load["train"]()
    if name == FOLD:
        return _hold_out(pool_and_val(bundle, section)[0], section)[1]
    if name == "val" and "val" not in bundle.load:
        return pool_and_val(bundle, section)[1]
    if name == "train" and ("val" not in bundle.load or section.folds is not None):
        return train_and_val(bundle, section)[0]
    if name not in bundle.load:
        raise InputError(f"{section.name} has no {name} split", "it has train, val" + _others(bundle))
    return bundle.load[name]()


def split_to_measure(bundle: DataBundle, section: DataSection, saved: Mapping[str, Any]) -> tuple[str, str | None]:
    """The split to evaluate where none is named, and a note: val, or all of other data that has no val split.

    `saved` is the data section in the checkpoint. The name is "all" for every sample of the train split.
    """
    if "val" in bundle.load or is_same_data(saved, section) or bundle.fingerprint == saved.get("fingerprint"):
        return "val", None
    if "train" in bundle.load:
        rest = ", apart from test" if "test" in bundle.load else ""
        return "all", f"all of the data{rest} is measured: it has no val split, and the model was trained on other data"
    name = next(iter(bundle.load))
    return name, f"the {name} split is measured: the data has no other"


def is_same_data(saved: Mapping[str, Any], section: DataSection) -> bool:
    """Whether `section` names the data, as it may be now, that the section `saved` in a checkpoint names."""
    return (saved.get("name"), saved.get("path")) == (section.name, section.options.get("path"))


def changed_data_note(bundle: DataBundle, section: DataSection, saved: Mapping[str, Any]) -> str | None:
    """What to know where the data that a checkpoint was trained on has changed since; None if it has not."""
    then, now = str(saved.get("fingerprint") or ""), bundle.fingerprint
    if not then or then == now or not is_same_data(saved, section):
        return None
    note = f"the data has changed since the checkpoint was trained: fingerprint {then[:12]} then, {now[:12]} now"
    if "val" in bundle.load:
        return note
    if section.carve == "shuffle":
        return f"{note}; its val split was chosen by shuffling, so val now has samples that were trained on"
    return f"{note}; samples that keep their name stay in train or val"


def _others(bundle: DataBundle) -> str:
    return "".join(f", {k}" for k in sorted(bundle.load) if k not in ("train", "val"))
