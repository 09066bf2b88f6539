"""Whether plain values and tensors agree: a checkpoint's meta, recipe and weights with each other, and with a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bigmodel_cli.core.errors import InputError


def first_difference(name: str, one: Any, other: Any, *whose: str) -> str:
    """Where two values differ, both named; `whose` they are, such as "checkpoint" and "data"."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) == len(other):
            at = next(i for i in range(len(one)) if one[i] != other[i])
            name, one, other = f"{name}[{at}]", one[at], other[at]
        else:
            odd = [x for x in (*one, *other) if (x in one) != (x in other)]
            name += f" (such as {_short(odd[0])})" if odd else ""
            one, other = len(one), len(other)
    return f"{name}: {_short(one)} in the {whose[0]}, {_short(other)} in the {whose[1]}"


def _plain(value: Any) -> Any:
    """`value` with tuples as lists, as a recipe's plain values are."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def check_fit(ours: Mapping[str, Tensor], state: Mapping[str, Any], source: str) -> None:
    """Hold the tensors `state`, read from `source`, against a model's own, `ours`: the same names and shapes.

    Raises:
        InputError: one is missing, unexpected or of another shape.
    """
    missing, unexpected = ours.keys() - state.keys(), state.keys() - ours.keys()
    if missing or unexpected:
        example = sorted(missing or unexpected)[0]
        counts = f"{len(missing)} tensors missing, {len(unexpected)} unexpected"
        raise InputError(f"{source}: {counts}, e.g. {example}", "the weights must fit the architecture they name")
    for key, tensor in state.items():
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        if shape != tuple(ours[key].shape):
            raise InputError(f"{source}: {key} is {shape}", f"the model's is {tuple(ours[key].shape)}")
