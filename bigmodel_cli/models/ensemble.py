"""Ensembles: several trained networks that answer as one. ``bigmodel ensemble`` makes them.

Shapes: B batch, M members, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import Spec
from bigmodel_cli.models.adapters.altered import altered

Average = Literal["probabilities", "sigmoids", "outputs"]
OF_KIND = {"image": "image_classification", "text": "text_classification"}
"""The task of the members' models, by the kind of their data."""


class Member(BaseModel):
    """One network, and how its inputs and outputs become those of the ensemble. An empty list changes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: dict[str, Any]
    """The model section of its recipe: name, options, and how its layers are altered."""
    input_scale: list[float] = []
    input_shift: list[float] = []
    """Per channel: its input is that of the ensemble times the scale plus the shift."""
    order: list[int] = []
    """The place among its outputs of each output of the ensemble."""
    output_scale: list[float] = []
    output_shift: list[float] = []
    """Per output of the ensemble."""


def kinds() -> tuple[str, ...]:
    return tuple(OF_KIND)


def describe(member: str) -> dict[str, Any]:
    return {"task": OF_KIND.get(member, OF_KIND["image"]), "head": "average", "backbone_first": "members.0"}


class Averaged(nn.Module):
    """(B,M,K) -> (B,K): outputs whose softmax is the mean of the members' softmax (Lakshminarayanan et al. 2017).

    With "sigmoids", the sigmoid of each is the mean of the members'; with "outputs" they are the mean themselves.
    """

    def __init__(self, how: Average) -> None:
        super().__init__()
        self.how = how

    def forward(self, outputs: Tensor) -> Tensor:
        if self.how == "outputs":
            return outputs.mean(1)
        if self.how == "probabilities":
            return outputs.log_softmax(-1).logsumexp(1) - math.log(outputs.shape[1])
        return logsigmoid(outputs).logsumexp(1) - logsigmoid(-outputs).logsumexp(1)


class Adapted(nn.Module):
    """One member: its network between what turns inputs and outputs of the ensemble into its own."""

    input_scale: Tensor | None
    input_shift: Tensor | None
    output_scale: Tensor | None
    output_shift: Tensor | None

    def __init__(self, network: nn.Module, about: Member) -> None:
        super().__init__()
        self.network, self.order = network, about.order
        # Not in the checkpoint's tensors: they are in its recipe.
        for name, shape in (("input", (1, -1, 1, 1)), ("output", (1, -1))):
            for part in ("scale", "shift"):
                values = about.model_dump()[f"{name}_{part}"]
                tensor = torch.tensor(values).view(shape) if values else None
                self.register_buffer(f"{name}_{part}", tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.input_scale is not None and self.input_shift is not None:
            x = x * self.input_scale + self.input_shift
        z: Tensor = self.network(x).float()
        if self.order:
            z = z[:, self.order]
        if self.output_scale is not None and self.output_shift is not None:
            z = z * self.output_scale + self.output_shift
        return z


class Ensemble(nn.Module):
    """Every member on the same prepared input; see :class:`Averaged`."""

    def __init__(self, members: Sequence[Adapted], how: Average) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.average = Averaged(how)

    def forward(self, x: Tensor) -> Tensor:
        return self.average(self.outputs_of_members(x))  # type: ignore[no-any-return]

    def outputs_of_members(self, x: Tensor) -> Tensor:
        """(B,M,K) what each member says, in the order and on the scale of the ensemble."""
        return torch.stack([member(x) for member in self.members], 1)


@models.register("ensemble:*", members=kinds, describe=describe, combines=True)
def ensemble(
    spec: Any, member: str, *, members: tuple[dict[str, Any], ...], average: Average = "probabilities"
) -> nn.Module:
    """Several trained networks that answer as one: made by `bigmodel ensemble`.

    Raises:
        InputError: fewer than two members, or one that does not fit the others.
    """
    if len(members) < 2:
        raise InputError(
            f"an ensemble of {len(members)}", "expected two or more", "bigmodel ensemble RUN RUN --out FILE"
        )
    found = [_member(i, given, spec, member) for i, given in enumerate(members)]
    return Ensemble([Adapted(_network(i, about, spec, member), about) for i, about in enumerate(found)], average)


def _member(i: int, given: Mapping[str, Any], spec: Any, kind: str) -> Member:
    try:
        about = Member.model_validate(given)
    except ValidationError as error:
        raise _wrong(i, error) from None
    channels, outputs = spec.channels if kind == "image" else 0, len(spec.classes)
    for values, length in ((about.input_scale, channels), (about.input_shift, channels),
                           (about.output_scale, outputs), (about.output_shift, outputs)):  # fmt: skip
        if len(values) not in (0, length):
            raise InputError(f"member {i + 1}: {len(values)} values", f"expected {length}")
    if (len(about.input_scale), len(about.output_scale)) != (len(about.input_shift), len(about.output_shift)):
        raise InputError(f"member {i + 1}: a scale without a shift", "expected both")
    if about.order and sorted(about.order) != list(range(outputs)):
        raise InputError(f"member {i + 1}: order {about.order[:5]}", f"expected each of 0 to {outputs - 1} once")
    return about


def _network(i: int, about: Member, spec: Spec, kind: str) -> nn.Module:
    section = about.model
    name = str(section.get("name"))
    entry = models.get(name)
    if entry.meta["task"] != OF_KIND[kind] or entry.meta.get("combines"):
        raise InputError(f"member {i + 1} is {name}", f"expected one model for {OF_KIND[kind].replace('_', ' ')}")
    try:
        options = entry.options({k: v for k, v in section.items() if k not in ("name", "pruned", "batchnorm")}, "model")
    except ValidationError as error:
        raise _wrong(i, error) from None
    network: nn.Module = entry(spec, **options)
    return altered(network, {"pruned": None, "batchnorm": "own", **section})


def _wrong(i: int, error: ValidationError) -> InputError:
    first = error.errors()[0]
    return InputError(f"member {i + 1}: {'.'.join(map(str, first['loc']))}", first["msg"][0].lower() + first["msg"][1:])
