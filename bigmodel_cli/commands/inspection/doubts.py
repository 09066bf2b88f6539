"""What a person should know of the splits of data: samples in two of them, and one sample under several labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigmodel_cli.core.types import DataBundle, Source


def doubts(bundle: DataBundle, splits: Mapping[str, Source]) -> list[str]:
    """Lines on the loaded `splits` of `bundle`, as training says them."""
    from bigmodel_cli.engine.build.data import conflicting_labels_note, shared_samples_note

    train = splits.get("train")
    others = {name: split for name, split in splits.items() if name != "train" and train is not None}
    shared = [shared_samples_note(bundle, train, split, name) for name, split in others.items() if train is not None]
    conflicts = [conflicting_labels_note(split, name, bundle.spec.classes) for name, split in splits.items()]
    return list(filter(None, [*shared, *conflicts]))
