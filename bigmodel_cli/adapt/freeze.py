"""What trains in fine-tuning. A method takes the model and its head's name, and returns what is frozen."""

from __future__ import annotations

from torch import nn

from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.types import Frozen


@methods.register("full")
def full(model: nn.Module, head: str) -> Frozen:
    """Every parameter trains."""
    return Frozen()


@methods.register("freeze-backbone")
def freeze_backbone(model: nn.Module, head: str) -> Frozen:
    """Only the head trains; everything below it is frozen, BatchNorm statistics and dropout included.

    Setting ``requires_grad`` alone would let BatchNorm go on averaging, and the
    "frozen" features would drift: those modules are held in eval mode as well.
    """
    inside = head + "."
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(inside))
    tensors = frozenset(name for name in model.state_dict() if not name.startswith(inside))
    # Leaves only: a container in eval mode says nothing, and the head's own container must train.
    modules = tuple(
        module
        for name, module in model.named_modules()
        if name != head and not name.startswith(inside) and not any(True for _ in module.children())
    )
    return Frozen(tensors, modules)
