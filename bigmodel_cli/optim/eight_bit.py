"""AdamW with 8-bit optimizer states (Dettmers et al. 2021), from torchao."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.registry import optimizers
from bigmodel_cli.optim.optimizers import Fraction, LearningRate, NamedParameters, WeightDecay, decay_groups

STATE_TENSORS = ("codes", "scale", "qmap")


def _import_torchao() -> Any:
    try:
        import torchao.optim
    except ImportError as error:
        hint = "pip install torchao, or --optimizer adamw"
        raise MachineError(f"torchao is not installed ({error})", "adamw8bit needs it", hint) from None
    return torchao.optim


class AdamW8bit(torch.optim.Optimizer):
    """torchao's optimizer, adapted to learning rates that are plain floats and to a state dict of plain tensors."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.param_groups = inner, inner.param_groups
        self.defaults: dict[str, Any] = {}
        for group in self.param_groups:
            group["lr"] = float(group["lr"])

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        rates = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = torch.tensor(rate)  # a float would be a constant, and every new value a recompilation
        loss = self.inner.step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
        return loss  # type: ignore[no-any-return]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        found = self.inner.state_dict()
        return {**found, "state": {i: {k: _plain(v) for k, v in s.items()} for i, s in found["state"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = {i: {k: _restore(v) for k, v in s.items()} for i, s in state_dict["state"].items()}
        self.inner.load_state_dict({**state_dict, "state": state})
        self.param_groups = self.inner.param_groups


def _plain(value: Any) -> Any:
    if all(hasattr(value, part) for part in STATE_TENSORS):
        return {**{part: getattr(value, part) for part in STATE_TENSORS}, "signed": value.signed}
    return value


def _restore(value: Any) -> Any:
    if isinstance(value, dict):
        from torchao.optim.subclass_8bit import OptimState8bit

        return OptimState8bit(*(value[part].clone() for part in STATE_TENSORS), value["signed"], torch.float32)
    return value.clone() if isinstance(value, Tensor) else value


@optimizers.register()
def adamw8bit(
    named: NamedParameters,
    *,
    lr: LearningRate = 1e-3,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    weight_decay: WeightDecay = 0.01,
) -> torch.optim.Optimizer:
    """AdamW with 8-bit moments (Dettmers et al. 2021); its first step compiles, which takes a C++ compiler.

    Raises:
        MachineError: torchao is not installed.
    """
    return AdamW8bit(_import_torchao().AdamW8bit(decay_groups(named, weight_decay), lr=lr, betas=betas))
