"""The layers of a model, their parameters, and the FLOPs of a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bigmodel_cli.core.types import Task
from bigmodel_cli.engine.device.lazy_dynamo import without_dynamo


@dataclass(frozen=True)
class Layer:
    """A layer of the model: its name, class, number of parameters, and FLOPs of a forward pass of one sample."""

    name: str
    kind: str
    parameters: int
    flops: int


def layers(model: nn.Module, task: Task, depth: int = 2) -> tuple[list[Layer], int]:
    """The layers of `model` down to `depth`, and the FLOPs of one sample's forward pass (a multiply-add is two).

    `model` must be on the meta device, so that nothing is computed.
    """
    example = tuple(x.to("meta") for x in task.example(1))
    model.eval()
    try:
        with without_dynamo():
            counts = _count_flops(model, example)
    except (ImportError, AttributeError):
        counts = _count_flops(model, example)
    root = type(model).__name__
    found = []
    for name, module in model.named_modules():
        level = name.count(".") + 1 if name else 0
        is_leaf = level == depth or not any(True for _ in module.children())
        if name and level <= depth and is_leaf:
            size = sum(p.numel() for p in module.parameters())
            found.append(Layer(name, type(module).__name__, size, counts.get(f"{root}.{name}", 0)))
    return found, counts.get("Global", 0)


def _count_flops(model: nn.Module, example: tuple[torch.Tensor, ...]) -> dict[str, int]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*example)
    return {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
