"""A head found at once, by a method that solves for it, on the features that the frozen rest gives.

Shapes: N samples, D features, K classes.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import Source
from bigmodel_cli.engine.evaluate import forward_pass
from bigmodel_cli.engine.loop import end_epoch
from bigmodel_cli.engine.run import Run


def solve(run: Run) -> bool:
    """Solve for the head, then evaluate and save as after an epoch. False where a signal stopped it."""
    assert run.adapted.solve is not None
    clock = time.perf_counter()
    head = run.model.get_submodule(models.get(run.recipe.model.name).meta["head"])
    assert isinstance(head, nn.Linear)
    parts = [features(run, head, source) for source in (run.batches.source, run.val)]
    if any(part is None for part in parts):
        return False
    (train, labels), (val, val_labels) = parts  # type: ignore[misc]
    weight, bias, note = run.adapted.solve(train, labels, val, val_labels)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        loss = nn.functional.cross_entropy(train @ weight.T + bias, labels, reduction="sum")
    if run.ema is not None:
        run.ema.module.load_state_dict(run.model.state_dict())
    run.emit({"event": "warning", "message": note})
    run.total_steps = run.progress.step = 0  # no step was taken, and none is left to take
    run.progress.loss_sum, run.progress.loss_count = loss.item(), len(labels)
    return end_epoch(run, len(labels) / (time.perf_counter() - clock))


def features(run: Run, head: nn.Module, source: Source) -> tuple[Tensor, Tensor] | None:
    """What goes into the head for every sample, (N,D) float32, and the labels (N,); None where a signal came.

    Raises:
        InputError: the head takes something other than one vector a sample.
    """
    seen: list[Tensor] = []
    labels: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].float().cpu()))
    try:
        with torch.inference_mode(), run.placement.autocast():
            batches = forward_pass(run.model, run.task, source, run.placement, run.recipe.train.eval_batch_size)
            for batch in batches:
                if run.stop():
                    return None
                run.task.outputs(run.model, batch)
                labels.append(batch["label"].cpu())
    finally:
        handle.remove()
    if seen[0].dim() != 2:
        raise InputError(f"the head takes {tuple(seen[0].shape)}", "expected one vector a sample", "--freeze-backbone")
    return torch.cat(seen).clone(), torch.cat(labels).clone()
