"""A step of one sample gives BatchNorm nothing to normalize by: avoided, or refused before training begins."""

from __future__ import annotations

from typing import Any

import pytest

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.training.assemble import assemble, execute
from bigmodel_cli.engine.training.run import Run


def assembled(model: str, count: int, size: int = 32, **train: Any) -> Run:
    values = {
        "model": {"name": model},
        "data": {"name": "synthetic_images", "size": size, "channels": 1, "classes": 2, "count": count},
        "train": {"epochs": 1, **train},
        "placement": {"precision": "fp32"},
    }
    return assemble(resolve([Layer("test", values)]).recipe)


@pytest.mark.parametrize("count", [9, 10])
def test_an_odd_sample_joins_another_batch(count: int) -> None:
    run = assembled("resnet18", count, batch_size=2)
    assert min(run.batches.size(i) for i in range(run.batches.steps_per_epoch)) == 2
    assert execute(run)


@pytest.mark.parametrize("train", [{"batch_size": 1}, {"batch_size": 2, "accumulate": 2}])
def test_batches_of_one_are_refused_before_the_first_step_where_batchnorm_would_fail(train: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"BatchNorm .* one value per channel"):
        assembled("resnet18", 8, size=8, **train)
    assert execute(assembled("resnet8", 8, **train))  # its maps have several values
    assert execute(assembled("mlp", 8, **train))
