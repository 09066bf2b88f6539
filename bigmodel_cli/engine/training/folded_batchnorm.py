"""BatchNorm that keeps its statistics while it trains, folded into the convolution before it.

With the mean m and the variance v fixed, BatchNorm of a convolution W * x is a convolution too: (s W) * x + (b - s m)
with s = g / sqrt(v + eps). Autograd goes through the product, so that W, g and b get the gradients that they would have
had, up to rounding, and two passes over the feature maps forwards and three backwards are saved. The modules, their
names and the state dict stay as they are.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.types import SampleKey
from bigmodel_cli.engine.training.gradients import MeanGradient
from bigmodel_cli.engine.training.run import Run

PROBED = 2  # samples of the pass that finds which convolution a BatchNorm follows
TOLERANCE = 1e-3  # relative: rounding differs, as the products are summed in another order


def fold_kept_statistics(run: Run) -> int:
    """Fold each BatchNorm that is in eval mode for the whole run into its convolution; returns their number.

    Only on a CPU, where passes over memory decide; a compiler would do it by itself.
    """
    norms: list[Any] = [m for m in run.adapted.frozen.modules if _is_foldable(m)]
    plain = run.parallel.group.world == 1 and type(run.gradients) is MeanGradient
    if not norms or not plain or run.placement.device.type != "cpu" or run.placement.compile:
        return 0

    def loss() -> Tensor:
        raw = run.batches.indexed_source.gather(run.batches.order(0)[:PROBED])
        batch = run.placement.batch(raw)
        batch = run.placement.inputs(run.task.prepare(batch, SampleKey(0, 0, batch["index"])))
        return run.task.loss(run.forward, batch).total  # features that were kept go to the head alone

    run.model.eval()  # nothing of its state changes
    folded = sum(_fold(conv, norm, given) for conv, norm, given in list(_pairs(run.model, norms, loss)))
    run.train_mode()
    return folded


@torch.no_grad()
def _fold(conv: Any, norm: Any, given: Tensor) -> bool:
    """Fold `norm` into `conv`, unless that changes what the two make of the images `given`.

    It does where the convolution takes its weight from elsewhere: a parametrization, as an adapter, has it computed,
    and some networks standardise it.
    """
    expected = norm(conv(given))
    kinds: tuple[Any, Any] = type(conv), type(norm)
    conv.__dict__["_norm"] = norm  # not a submodule: it would be in the state dict twice
    conv.__class__, norm.__class__ = _folded_kind(kinds[0]), _emptied_kind(kinds[1])
    if torch.linalg.vector_norm(norm(conv(given)) - expected) <= TOLERANCE * torch.linalg.vector_norm(expected):
        return True
    del conv.__dict__["_norm"]
    conv.__class__, norm.__class__ = kinds
    return False


def _is_foldable(module: nn.Module) -> bool:
    if not isinstance(module, nn.BatchNorm2d) or type(module) not in (nn.BatchNorm2d, _timm_norm()):
        return False
    return module.running_mean is not None and module.affine


def _timm_norm() -> type[nn.Module] | None:
    """timm's BatchNorm with an activation inside; None where timm is not loaded."""
    found = sys.modules.get("timm.layers.norm_act")
    return None if found is None else found.BatchNormAct2d  # type: ignore[no-any-return]


def _pairs(
    model: nn.Module, norms: list[nn.Module], loss: Callable[[], Tensor]
) -> Iterator[tuple[nn.Module, nn.Module, Tensor]]:
    """Each convolution whose output one of `norms` alone reads, that one, and the convolution's input; as seen in a
    pass that ends in `loss`."""
    made: dict[Any, nn.Module] = {}
    given: dict[nn.Module, Tensor] = {}
    read: dict[nn.Module, Any] = {}
    calls: Counter[nn.Module] = Counter()

    def after(conv: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        calls[conv] += 1
        made[out.grad_fn], given[conv] = conv, inputs[0].detach()

    def before(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        read[norm] = inputs[0].grad_fn

    hooks = [m.register_forward_hook(after) for m in model.modules() if isinstance(m, nn.Conv2d)]
    hooks += [norm.register_forward_pre_hook(before) for norm in dict.fromkeys(norms)]  # methods may name one twice
    try:
        with torch.enable_grad():
            end = loss().grad_fn
    finally:
        for hook in hooks:
            hook.remove()
    readers = _readers(end)
    for norm, function in read.items():
        conv = made.get(function)
        if function is not None and conv is not None and readers[function] == calls[conv] == calls[norm] == 1:
            yield conv, norm, given[conv]


def _readers(end: Any) -> Counter[Any]:
    """How many functions of the graph that ends in `end` take the output of each."""
    found: Counter[Any] = Counter()
    seen, left = {end}, [end]
    while left:
        function = left.pop()
        for source, _ in () if function is None else function.next_functions:
            found[source] += 1
            if source not in seen:
                seen.add(source)
                left.append(source)
    return found


class _Folded(nn.Conv2d):
    """A convolution that applies the BatchNorm after it, while that keeps its statistics."""

    def forward(self, x: Tensor) -> Tensor:
        norm: Any = self.__dict__["_norm"]
        if norm.training:
            return super().forward(x)
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        own: Any = self._parameters["bias"]
        weight = self.weight * scale.view(-1, 1, 1, 1)
        # In the instance these come before the parameters of the same names, whatever the class makes of them.
        self.__dict__.update(weight=weight, bias=shift if own is None else shift + own * scale)
        try:
            return super().forward(x)
        finally:
            del self.__dict__["weight"], self.__dict__["bias"]


class _Emptied(nn.BatchNorm2d):
    """A BatchNorm whose work the convolution before it does, while it keeps its statistics."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x


class _EmptiedWithActivation(nn.BatchNorm2d):
    """The same of timm's, whose activation stays."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.act(self.drop(x))  # type: ignore[no-any-return, operator]


@functools.cache
def _folded_kind(kind: Any) -> Any:
    """`kind`, folded. Its name stays, by which others may know a layer."""
    return type(kind.__name__, (_Folded, kind), {})


@functools.cache
def _emptied_kind(kind: Any) -> Any:
    return type(kind.__name__, (_Emptied if kind is nn.BatchNorm2d else _EmptiedWithActivation, kind), {})
