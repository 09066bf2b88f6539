"""The quickest way to have a model answer: BatchNorm folded into convolutions, int8 or bf16 where they agree."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from bigmodel_cli.core.types import Batch
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.device.small_map_conv import dense_small_maps
from bigmodel_cli.engine.inference.int8_conv import has_int8, is_wide, to_int8

WORTH_A_LOOK = 2.0  # seconds: shorter work is done before a quicker way is found
WORTH = 1.1  # a smaller gain is noise
TOLERANCE = 0.02  # relative L2 difference of the answers; in a ResNet-18 bf16 is off by 0.007, int8 by 0.01
ForwardFn = Callable[[nn.Module, Batch], Batch]


@dataclass(frozen=True)
class Optimized:
    """A model in eval mode, how to run it, and a line on what was done to it; empty where nothing was."""

    model: nn.Module
    placement: Placement
    note: str = ""


def optimize_for_inference(
    model: nn.Module, says: ForwardFn, placement: Placement, batch: Batch, samples: int, allow_low_precision: bool
) -> Optimized:
    """The quickest agreeing form of `model` for `samples` samples like those in the model-ready `batch`, by timing.

    `model` is on its device and stays as it is; `says` is what is asked of it. Folding is exact but for rounding;
    int8 and bf16 are tried where `free`, and kept where the answers on `batch` are within TOLERANCE.
    """
    model.eval()
    _answer(model, says, placement, {k: v[:2] for k, v in batch.items()})  # wakes threads, loads kernels
    least, expected = _answer(model, says, placement, batch)
    if least / len(batch["index"]) * samples < WORTH_A_LOOK:
        return Optimized(model, placement)
    kinds = {"int8": has_int8(placement.device), "bf16": placement.has_bf16 or placement.device.type != "cpu"}
    for form in _forms(model, says, placement, batch, kinds if allow_low_precision else {}):
        with contextlib.suppress(RuntimeError):  # an operation without a kernel for bf16
            _answer(form.model, says, form.placement, batch)
            seconds, answers = _answer(form.model, says, form.placement, batch)
            apart = difference(answers, expected)
            if apart <= TOLERANCE and least / seconds >= WORTH:
                gain = f"{least / seconds:.2g}x as fast, answers within {apart:.1g} of fp32"
                return Optimized(form.model, form.placement, f"{form.note}: {gain}")
    return Optimized(model, placement)


def optimize_by_rule(
    model: nn.Module, says: ForwardFn, placement: Placement, batch: Batch, allow_low_precision: bool
) -> Optimized:
    """As :func:`optimize_for_inference`, without a clock: the same choice each time, which a resumed run depends on."""
    model.eval()
    _, expected = _answer(model, says, placement, batch)
    kinds = {"int8": has_int8(placement.device) and is_wide(model), "bf16": placement.has_bf16}
    for form in _forms(model, says, placement, batch, kinds if allow_low_precision else {}):
        with contextlib.suppress(RuntimeError):
            apart = difference(_answer(form.model, says, form.placement, batch)[1], expected)
            if apart <= TOLERANCE:
                return Optimized(form.model, form.placement, f"{form.note}: answers within {apart:.1g} of fp32")
    return Optimized(model, placement)


def _forms(
    model: nn.Module, says: ForwardFn, placement: Placement, batch: Batch, kinds: Mapping[str, bool]
) -> Iterator[Optimized]:
    """Other forms of `model`, the quickest first; int8 and bf16 where `kinds` says so."""
    folded = fold(model)
    name = "" if folded is None else "BatchNorm folded"
    kinds = kinds if placement.precision == "fp32" else {}
    if kinds.get("int8") and isinstance(folded, GraphModule):
        plain: Any = placement.with_(small_maps=False).model(folded)
        some = {k: v[::2] for k, v in batch.items()}  # the other half is news to its ranges
        with contextlib.suppress(RuntimeError):  # a torch whose kernels want other arguments
            form = to_int8(plain, lambda m: _answer(m, says, placement, some))
            yield Optimized(form, placement, f"{name}, int8")
    if kinds.get("bf16"):
        half = copy.deepcopy(model if folded is None else folded).to(torch.bfloat16)
        how = placement.with_(precision="bf16")
        yield Optimized(how.model(half), how, ", ".join(filter(None, (name, "bf16"))))
    if folded is not None:
        yield Optimized(placement.model(folded), placement, name)


def fold(model: nn.Module) -> nn.Module | None:
    """A copy of `model`, in eval mode, each BatchNorm folded into the convolution before it; None where it cannot be.

    Tracing asks that the forward pass does not branch on values; the models here and in torchvision do not.
    """
    if not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        return None
    from torch.fx.experimental.optimization import fuse

    plain = copy.deepcopy(model)
    dense_small_maps(plain, False)  # their forward looks at shapes
    try:
        return fuse(plain, inplace=True)
    except Exception:  # tracing fails in as many ways as there are models
        return None


def difference(outputs: Batch, expected: Batch) -> float:
    """The largest relative L2 difference of the floating outputs; infinite where one is not finite."""
    apart = 0.0
    for key, want in expected.items():
        if want.is_floating_point() and key != "loss":
            got, reference = outputs[key].double(), want.double()
            scale = reference.norm().item()
            apart = max(apart, (got - reference).norm().item() / scale if scale else got.norm().item())
    return apart if apart == apart else float("inf")


def _answer(model: nn.Module, says: ForwardFn, placement: Placement, batch: Batch) -> tuple[float, Batch]:
    placement.wait()
    clock = time.perf_counter()
    with torch.inference_mode(), placement.autocast():
        answers = says(model, batch)
    placement.wait()
    return time.perf_counter() - clock, answers
