"""Solve for the head directly, on the features of the frozen backbone.

Shapes: N samples, D features, K classes.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from bigmodel_cli.core.answering import Answers
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.types import Solve
from bigmodel_cli.data.balance import class_weights
from bigmodel_cli.engine.build.model import head_name
from bigmodel_cli.engine.training.cached_features import features
from bigmodel_cli.engine.training.loop import end_epoch, evaluate_start
from bigmodel_cli.engine.training.run import Run


def solve(run: Run) -> bool:
    """Solve for the head, then evaluate and save as after an epoch. Return False if a signal stopped it."""
    if run.progress.epoch:  # resumed after it had finished
        return True
    assert run.adapted.solve is not None
    started = time.perf_counter()
    _solve_head(run, run.adapted.solve)
    return end_epoch(run, len(run.batches.source) / (time.perf_counter() - started))


def start_from_solved_head(run: Run) -> bool:
    """Solve for the head that training starts from. It is evaluated and saved as epoch 0, so that the best epoch is at
    least as good on val as the frozen backbone. Return False if a signal stopped it.

    Raises:
        InputError: several processes, which would each solve the same.
    """
    if run.adapted.first_head is None or run.progress.best_metric is not None or run.progress.step:
        return True  # nothing to solve for, or resumed after it was
    if run.parallel.group.world > 1:
        raise InputError("a head is solved for in one process", hint="--set start.solve=false, or without --nproc")
    started = time.perf_counter()
    _solve_head(run, run.adapted.first_head)
    return evaluate_start(run, len(run.batches.source) / (time.perf_counter() - started))


def _solve_head(run: Run, solver: Solve) -> None:
    """Replace the head's weights by the solution for the train split; the loss of it goes into the progress."""
    head = run.model.get_submodule(head_name(run.recipe))
    assert isinstance(head, nn.Linear)
    with run.timer("features"):
        train, val = features(run)
    assert isinstance(run.task, Answers)
    balanced = run.recipe.train.balance != "none"  # balanced sampling and class weights have the same optimum
    one_each = train.labels.dim() == 1
    weights = class_weights(train.labels, head.out_features)[train.labels] if balanced and one_each else None
    weights = torch.ones(len(train)) if weights is None else weights
    with run.timer("solving"):
        weight, bias, note = solver(train.vectors, train.labels, weights, val.vectors, val.labels)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        loss = run.task.loss_per_sample(train.vectors @ weight.T + bias, train.labels).sum()
    if run.ema is not None:
        run.ema.module.load_state_dict(run.model.state_dict())
    run.emit({"event": "note", "message": note})
    run.progress.loss_sum, run.progress.loss_count = loss.item(), len(train)
