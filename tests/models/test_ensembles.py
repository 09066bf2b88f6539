"""The network of an ensemble: what is averaged, and members that a file describes wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.models.ensemble import Averaged

SPEC = ImageSpec(1, 8, 8, ("a", "b", "c"))
PLAIN: dict[str, Any] = {"model": {"name": "mlp"}}


def built(*members: dict[str, Any], **options: Any) -> nn.Module:
    return models.get("ensemble:image")(SPEC, members=members, **options)  # type: ignore[no-any-return]


def test_what_is_averaged() -> None:
    outputs = torch.randn(5, 3, 4) * 4
    assert torch.allclose(Averaged("probabilities")(outputs).softmax(1), outputs.softmax(2).mean(1), atol=1e-6)
    assert torch.allclose(Averaged("sigmoids")(outputs).sigmoid(), outputs.sigmoid().mean(1), atol=1e-6)
    assert torch.equal(Averaged("outputs")(outputs), outputs.mean(1))
    extreme = torch.tensor([[[500.0, -500.0], [-500.0, 500.0]]])
    assert Averaged("sigmoids")(extreme).isfinite().all() and Averaged("probabilities")(extreme).isfinite().all()


def test_inputs_and_outputs_of_members_are_mapped() -> None:
    model = built(
        {**PLAIN, "input_scale": [2.0], "input_shift": [0.5], "order": [2, 0, 1]},
        {**PLAIN, "output_scale": [1.0, 2.0, 3.0], "output_shift": [0.0, 1.0, 0.0]},
        average="outputs",
    )
    x = torch.randn(4, 1, 8, 8)
    first, second = (member.network for member in model.members)  # type: ignore[union-attr]
    one = first(x * 2 + 0.5)[:, [2, 0, 1]]
    two = second(x) * torch.tensor([1.0, 2, 3]) + torch.tensor([0.0, 1, 0])
    assert torch.allclose(model(x), (one + two) / 2, atol=1e-6)
    assert not [key for key in model.state_dict() if "scale" in key or "shift" in key]  # they are in the recipe


def test_a_member_keeps_how_it_was_altered() -> None:
    grouped = {"model": {"name": "resnet8", "batchnorm": "group"}}
    model = built(grouped, {"model": {"name": "resnet8"}})
    norms = [[m for m in member.modules() if "Norm" in type(m).__name__] for member in model.members]  # type: ignore[union-attr]
    assert norms[0] and all(isinstance(m, nn.GroupNorm) for m in norms[0])
    assert norms[1] and all(isinstance(m, nn.BatchNorm2d) for m in norms[1])


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ({}, "model"),
        ({**PLAIN, "code": "x"}, "code"),
        ({**PLAIN, "order": [0, 0, 1]}, "order"),
        ({**PLAIN, "input_scale": [1.0, 2.0]}, "2 values"),
        ({**PLAIN, "input_scale": [1.0]}, "without a shift"),
        ({"model": {"name": "text-cnn"}}, "expected one model for image"),
        ({"model": {"name": "ensemble:image"}}, "expected one model"),
        ({"model": {"name": "mlp", "width": 3}}, "width"),
    ],
)
def test_members_that_do_not_fit_are_refused(member: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        built(PLAIN, member)
    with pytest.raises(InputError, match="ensemble of 1"):
        built(PLAIN)
