"""Compares plain values and tensors of checkpoints and models, with a message that names the first difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bigmodel_cli.core.errors import InputError


def first_difference(name: str, first: Any, second: Any, *sources: str) -> str:
    """A line on the first difference of two values; `sources` names where each is from: "checkpoint", "data"."""
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        if len(first) == len(second):
            index = next(i for i in range(len(first)) if first[i] != second[i])
            name, first, second = f"{name}[{index}]", first[index], second[index]
        else:
            only_in_one = [x for x in (*first, *second) if (x in first) != (x in second)]
            name += f" (such as {shorten(only_in_one[0])})" if only_in_one else ""
            first, second = len(first), len(second)
    return f"{name}: {shorten(first)} in the {sources[0]}, {shorten(second)} in the {sources[1]}"


def tuples_to_lists(value: Any) -> Any:
    """`value` with tuples as lists, as in the plain values of a recipe."""
    return [tuples_to_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def shorten(value: Any) -> str:
    """The repr of `value`, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def check_state_dict(expected: Mapping[str, Tensor], state: Mapping[str, Any], source: str) -> None:
    """Check that the tensors `state`, read from `source`, have the names and shapes of a model's, `expected`.

    Raises:
        InputError: a tensor is missing, unexpected or of another shape.
    """
    missing, unexpected = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unexpected:
        example = sorted(missing or unexpected)[0]
        counts = f"{len(missing)} tensors missing, {len(unexpected)} unexpected"
        raise InputError(f"{source}: {counts}, e.g. {example}", "the weights must fit the architecture they name")
    for key, tensor in state.items():
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        if shape != tuple(expected[key].shape):
            raise InputError(f"{source}: {key} is {shape}", f"the model's is {tuple(expected[key].shape)}")


def rename(tensors: dict[str, Tensor], renames: Mapping[str, str]) -> None:
    """Give `tensors` our names; `renames` maps the beginning of a published or an earlier name to that of ours."""
    for key in list(tensors):
        old = next((old for old in renames if key.startswith(old)), None)
        if old is not None:
            tensors[renames[old] + key.removeprefix(old)] = tensors.pop(key)
