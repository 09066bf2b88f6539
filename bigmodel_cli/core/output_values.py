"""The values of a spec that turn a model's outputs into answers. They are plain numbers, stored in every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Protocol, runtime_checkable

from bigmodel_cli.core.errors import InputError

OutputValues = tuple[tuple[str, tuple[float, ...]], ...]
"""What turns a model's outputs into answers, beside its weights: by name one number per output, such as the thresholds
of labels, or the mean and the standard deviation of targets. In pairs, so that a spec can be hashed."""
POSITIVE = ("std", "temperature")
"""The names of values that are divided by."""
SCORES = "scores"
"""Marks class outputs that are scores and not the logits of probabilities: the loss was none of probabilities."""
TEMPERATURE = "temperature"
"""What logits are divided by before the softmax, so that probabilities are calibrated (Guo et al. 2017)."""


def plain_values(spec: Any) -> dict[str, Any]:
    """The fields of a spec as stored: tuples as lists, and ``outputs`` only if there are any."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(spec).items()}
    outputs = {name: list(numbers) for name, numbers in values.pop("outputs")}
    return {**values, **({"outputs": outputs} if outputs else {})}


def read_outputs(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of a spec with ``outputs`` in pairs.

    Raises:
        InputError: they are not lists of numbers by name, one number per output.
    """
    given = values.get("outputs", {})
    if not given:
        return {k: v for k, v in values.items() if k != "outputs"}
    count = len(values.get("classes") or ())
    numbers = isinstance(given, Mapping) and all(
        isinstance(name, str) and isinstance(row, list) and len(row) == count
        and all(isinstance(x, (int, float)) and math.isfinite(x) and (x > 0 or name not in POSITIVE) for x in row)
        for name, row in given.items()
    )  # fmt: skip
    if not numbers:
        raise InputError("input.outputs", f"expected finite numbers by name, {count} each")
    return {**values, "outputs": tuple((name, tuple(map(float, row))) for name, row in sorted(given.items()))}


def changed(spec: Any, changes: Mapping[str, Any]) -> Any:
    """`spec` with `changes`. Other classes have other output values, so these are dropped unless they are given."""
    if "classes" in changes and changes["classes"] != spec.classes:
        changes = {"outputs": (), **changes}
    return replace(spec, **changes)


def output_values(spec: Any) -> Mapping[str, tuple[float, ...]]:
    """The values that turn outputs into answers, by name."""
    return dict(spec.outputs) if isinstance(spec, HasOutputs) else {}


def with_values(spec: Any, values: Mapping[str, tuple[float, ...]]) -> Any:
    """`spec` with exactly these output values."""
    return replace(spec, outputs=tuple(sorted(values.items())))


def uncalibrated(spec: Any) -> Any:
    """`spec` without a temperature, which holds for the weights that it was fitted on only."""
    values = output_values(spec)
    if TEMPERATURE not in values:
        return spec
    return with_values(spec, {k: v for k, v in values.items() if k != TEMPERATURE})


def marked(spec: Any, probabilities: bool) -> Any:
    """`spec` of class outputs, which `probabilities` says whether the loss makes logits of probabilities.

    A fitted temperature makes probabilities of scores too.
    """
    values = output_values(spec)
    scores = not probabilities and TEMPERATURE not in values
    if scores == (SCORES in values):
        return spec
    rest = {k: v for k, v in values.items() if k != SCORES}
    return with_values(spec, {**rest, **({SCORES: (1.0,) * len(spec.classes)} if scores else {})})


@runtime_checkable
class HasOutputs(Protocol):
    """A spec with values that turn a model's outputs into answers."""

    @property
    def outputs(self) -> OutputValues: ...
