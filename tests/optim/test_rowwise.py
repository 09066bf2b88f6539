"""Row-wise Adagrad: its formula, sparse gradients against dense ones, and what a step leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import optimizers
from bigmodel_cli.engine.training.gradients import clip_gradients, gradient_values
from bigmodel_cli.optim.rowwise import RowwiseAdagrad


def table(sparse: bool) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(50, 4, sparse=sparse)


def backward(model: nn.Embedding, rows: list[int]) -> None:
    model(torch.tensor(rows)).pow(2).sum().backward()


def test_sparse_and_dense_gradients_give_the_same_steps_norm_and_clipping() -> None:
    models = table(True), table(False)
    steppers = [RowwiseAdagrad(m.parameters(), lr=0.1) for m in models]
    before = models[0].weight.detach().clone()
    for rows in ([3, 7, 3], [7, 9]):
        norms = []
        for model, stepper in zip(models, steppers, strict=True):
            backward(model, rows)
            norms.append(torch.nn.utils.get_total_norm(gradient_values(stepper, 1)))
            clip_gradients(model.parameters(), 1.0, norms[-1])
            assert torch.nn.utils.get_total_norm(gradient_values(stepper, 1)) <= 1.0001
            stepper.step()
            stepper.zero_grad()
        torch.testing.assert_close(*norms)
    torch.testing.assert_close(models[0].weight, models[1].weight)
    changed = (models[0].weight != before).any(1).nonzero().flatten().tolist()
    assert changed == [3, 7, 9]


def test_the_first_step_is_the_gradient_over_its_root_mean_square() -> None:
    model = table(True)
    before = model.weight.detach().clone()
    backward(model, [5])
    stepper = RowwiseAdagrad(model.parameters(), lr=0.1)
    stepper.step()
    gradient = 2 * before[5]
    expected = before[5] - 0.1 * gradient / gradient.square().mean().sqrt()
    torch.testing.assert_close(model.weight[5].detach(), expected)
    assert stepper.state[model.weight]["sum"].shape == (50,), "one number a row"


def test_the_longest_table_and_long_ones_are_its_and_the_rest_is_for_adamw() -> None:
    sizes = {"longest": (20, 3), "long": (10, 3), "short": (9, 3), "bias": (30,)}
    named = [(name, nn.Parameter(torch.ones(size))) for name, size in sizes.items()]
    for rows, wanted in ((10, {"longest", "long"}), (100, {"longest"})):
        made = optimizers.get("rowwise-adagrad")(named, rows=rows, lr=0.5, adamw_lr=0.1)
        own = {id(p) for group in made.param_groups if group["lr"] == 0.5 for p in group["params"]}
        assert {name for name, p in named if id(p) in own} == wanted
    with pytest.raises(InputError, match="no table"):
        optimizers.get("rowwise-adagrad")(named[3:])


def test_sparse_gradients_that_nobody_can_step_are_refused() -> None:
    model = table(True)
    backward(model, [1])
    with pytest.raises(InputError, match="several processes"):
        gradient_values(RowwiseAdagrad(model.parameters(), lr=0.1), 2)
    with pytest.raises(InputError, match="sparse with AdamW"):
        gradient_values(torch.optim.AdamW(model.parameters()), 1)
