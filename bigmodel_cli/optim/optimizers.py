"""torch's optimizers, fused where available. Weight decay never applies to biases and norms.

Each builder takes (name, parameter) pairs. Notation: w weights, g gradient, lr learning rate.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import optimizers
from bigmodel_cli.optim.combined import Combined
from bigmodel_cli.optim.muon import Muon

NamedParameters = list[tuple[str, nn.Parameter]]
LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
WeightDecay = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def decay_groups(named: NamedParameters, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter decay_groups: weight decay applies to matrices and filters, not to biases and norm scales.

    As in He et al. 2018, "Bag of Tricks".
    """
    decayed = [p for _, p in named if p.dim() > 1]
    plain = [p for _, p in named if p.dim() <= 1]
    both = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in both if group["params"]]


def _fused(named: NamedParameters) -> bool:
    """Whether torch has a fused kernel for the device and dtype of all parameters."""
    return all(p.device.type in ("cpu", "cuda") and p.dtype == torch.float32 for _, p in named)


@optimizers.register(full_batch=True)
def gd(named: NamedParameters, *, lr: LearningRate = 0.1, weight_decay: WeightDecay = 0.0) -> torch.optim.Optimizer:
    """Gradient descent, the whole train split at each step: w <- w - lr g (Cauchy 1847)."""
    return torch.optim.SGD(decay_groups(named, weight_decay), lr=lr, fused=_fused(named))


@optimizers.register()
def sgd(
    named: NamedParameters,
    *,
    lr: LearningRate = 0.1,
    momentum: Fraction = 0.0,
    nesterov: bool = False,
    weight_decay: WeightDecay = 0.0,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent, one batch at each step: w <- w - lr g (Robbins and Monro 1951)."""
    if nesterov and not momentum:
        raise InputError("optimizer.nesterov without momentum", "expected momentum > 0", "--optimizer momentum")
    fused = _fused(named)
    return torch.optim.SGD(decay_groups(named, weight_decay), lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)


@optimizers.register()
def momentum(
    named: NamedParameters,
    *,
    lr: LearningRate = 0.1,
    momentum: Fraction = 0.9,
    nesterov: bool = False,
    weight_decay: WeightDecay = 0.0,
) -> torch.optim.Optimizer:
    """SGD with momentum: v <- m v + g; w <- w - lr v (Polyak 1964; Nesterov 1983)."""
    return sgd(named, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)  # type: ignore[no-any-return]


@optimizers.register()
def adam(
    named: NamedParameters,
    *,
    lr: LearningRate = 1e-3,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    weight_decay: WeightDecay = 0.0,
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2014); weight decay is added to the gradient."""
    return torch.optim.Adam(decay_groups(named, weight_decay), lr=lr, betas=betas, fused=_fused(named))


@optimizers.register()
def adamw(
    named: NamedParameters,
    *,
    lr: LearningRate = 1e-3,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    weight_decay: WeightDecay = 0.01,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017)."""
    return torch.optim.AdamW(decay_groups(named, weight_decay), lr=lr, betas=betas, fused=_fused(named))


@optimizers.register()
def rmsprop(
    named: NamedParameters, *, lr: LearningRate = 1e-3, momentum: Fraction = 0.0, weight_decay: WeightDecay = 0.0
) -> torch.optim.Optimizer:
    """RMSprop (Hinton 2012)."""
    return torch.optim.RMSprop(decay_groups(named, weight_decay), lr=lr, momentum=momentum)


@optimizers.register()
def adagrad(
    named: NamedParameters, *, lr: LearningRate = 1e-2, weight_decay: WeightDecay = 0.0
) -> torch.optim.Optimizer:
    """Adagrad (Duchi et al. 2011)."""
    return torch.optim.Adagrad(decay_groups(named, weight_decay), lr=lr)


@optimizers.register()
def adadelta(
    named: NamedParameters, *, lr: LearningRate = 1.0, weight_decay: WeightDecay = 0.0
) -> torch.optim.Optimizer:
    """Adadelta (Zeiler 2012)."""
    return torch.optim.Adadelta(decay_groups(named, weight_decay), lr=lr)


@optimizers.register()
def adamax(
    named: NamedParameters, *, lr: LearningRate = 2e-3, weight_decay: WeightDecay = 0.0
) -> torch.optim.Optimizer:
    """Adamax (Kingma and Ba 2014)."""
    return torch.optim.Adamax(decay_groups(named, weight_decay), lr=lr)


@optimizers.register()
def nadam(named: NamedParameters, *, lr: LearningRate = 2e-3, weight_decay: WeightDecay = 0.0) -> torch.optim.Optimizer:
    """Adam with Nesterov momentum (Dozat 2016)."""
    return torch.optim.NAdam(decay_groups(named, weight_decay), lr=lr)


@optimizers.register()
def radam(named: NamedParameters, *, lr: LearningRate = 1e-3, weight_decay: WeightDecay = 0.0) -> torch.optim.Optimizer:
    """Rectified Adam (Liu et al. 2019)."""
    return torch.optim.RAdam(decay_groups(named, weight_decay), lr=lr)


@optimizers.register(whole_matrices=True)
def muon(
    named: NamedParameters,
    *,
    lr: LearningRate = 2e-2,
    momentum: Fraction = 0.95,
    adamw_lr: LearningRate = 1e-3,
    weight_decay: WeightDecay = 0.01,
) -> torch.optim.Optimizer:
    """Muon (Jordan 2024) for hidden matrices and filters, AdamW for the rest.

    The last two parameters are the head's weight and bias, which train better with AdamW.

    Raises:
        InputError: Muon has nothing to train, so `lr` would have no effect.
    """
    matrices = [p for _, p in named[:-2] if p.dim() >= 2]
    if not matrices:
        raise InputError("muon: no hidden matrix or filter to train", "it does not train the head", "--optimizer adamw")
    chosen = {id(p) for p in matrices}
    rest = [(n, p) for n, p in named if id(p) not in chosen]
    others = adamw(rest, lr=adamw_lr, weight_decay=weight_decay)
    return Combined([Muon(matrices, lr=lr, momentum=momentum, weight_decay=weight_decay), others])
