"""Which classes a model and a data set share, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassMatch:
    """`missing`: classes of the model that the data lacks; `unseen`: classes of the data that the model lacks."""

    missing: list[str]
    unseen: list[str]


def match_classes(model_classes: Sequence[str], data_classes: Sequence[str]) -> ClassMatch:
    """Compare by *name*, because positions are arbitrary."""
    return ClassMatch(
        [c for c in model_classes if c not in set(data_classes)],
        [c for c in data_classes if c not in set(model_classes)],
    )
