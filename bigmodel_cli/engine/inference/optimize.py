"""The fastest form of a model for inference: BatchNorm folded into convolutions, and int8 or bf16 where accurate."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Tracer

from bigmodel_cli.core.types import Batch
from bigmodel_cli.engine.device.convolutions import own_convolutions
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.inference.int8_conv import has_int8, is_wide_enough, quantize_convolutions

MIN_SECONDS = 2.0  # shorter work is finished before an optimized form is found
MIN_SPEEDUP = 1.1  # a smaller gain is noise
TOLERANCE = 0.02  # relative L2 error of the outputs; a ResNet-18 has 0.007 in bf16 and 0.01 in int8
ForwardFn = Callable[[nn.Module, Batch], Batch]


@dataclass(frozen=True)
class Optimized:
    """A model in eval mode, the placement to run it with, and a line on what was optimized ("" for nothing)."""

    model: nn.Module
    placement: Placement
    note: str = ""


def optimize_for_inference(
    model: nn.Module, forward_fn: ForwardFn, placement: Placement, batch: Batch, samples: int, allow_low_precision: bool
) -> Optimized:
    """The fastest form of `model` for `samples` samples like those in the prepared `batch`, found by timing.

    `model` is on its device and not changed; `forward_fn` runs it. Folding is exact up to rounding. int8 and bf16
    are tried with `allow_low_precision`, and used where the error of the outputs on `batch` is within TOLERANCE.
    """
    model.eval()
    _timed_forward(
        model, forward_fn, placement, {k: v[:2] for k, v in batch.items()}
    )  # warm-up: starts threads, loads kernels
    baseline_seconds, expected = _timed_forward(model, forward_fn, placement, batch)
    if baseline_seconds / len(batch["index"]) * samples < MIN_SECONDS:
        return Optimized(model, placement)
    allowed = {"int8": has_int8(placement.device), "bf16": placement.has_bf16 or placement.device.type != "cpu"}
    for candidate in _candidates(model, forward_fn, placement, batch, allowed if allow_low_precision else {}):
        with contextlib.suppress(RuntimeError):  # an operation without a kernel for bf16
            _timed_forward(candidate.model, forward_fn, candidate.placement, batch)
            seconds, outputs = _timed_forward(candidate.model, forward_fn, candidate.placement, batch)
            error = relative_error(outputs, expected)
            if error <= TOLERANCE and baseline_seconds / seconds >= MIN_SPEEDUP:
                gain = f"{baseline_seconds / seconds:.2g}x as fast, answers within {error:.1g} of fp32"
                return Optimized(candidate.model, candidate.placement, f"{candidate.note}: {gain}")
    return Optimized(model, placement)


def optimize_by_rule(
    model: nn.Module, forward_fn: ForwardFn, placement: Placement, batch: Batch, allow_low_precision: bool
) -> Optimized:
    """As :func:`optimize_for_inference`, but without timing: a resumed run depends on making the same choice."""
    model.eval()
    _, expected = _timed_forward(model, forward_fn, placement, batch)
    allowed = {"int8": has_int8(placement.device) and is_wide_enough(model), "bf16": placement.has_bf16}
    for candidate in _candidates(model, forward_fn, placement, batch, allowed if allow_low_precision else {}):
        with contextlib.suppress(RuntimeError):
            error = relative_error(_timed_forward(candidate.model, forward_fn, candidate.placement, batch)[1], expected)
            if error <= TOLERANCE:
                return Optimized(
                    candidate.model, candidate.placement, f"{candidate.note}: answers within {error:.1g} of fp32"
                )
    return Optimized(model, placement)


def _candidates(
    model: nn.Module, forward_fn: ForwardFn, placement: Placement, batch: Batch, allowed: Mapping[str, bool]
) -> Iterator[Optimized]:
    """Optimized forms of `model`, the fastest first; int8 and bf16 only where `allowed`."""
    folded = fold_batchnorm(model)
    name = "" if folded is None else "BatchNorm folded"
    allowed = allowed if placement.precision == "fp32" else {}
    if allowed.get("int8") and isinstance(folded, GraphModule):
        plain: Any = placement.with_(small_maps=False).model(folded)
        calibration = {k: v[::2] for k, v in batch.items()}  # the other half tests whether the ranges generalise
        with contextlib.suppress(RuntimeError):  # a torch whose kernels take other arguments
            candidate = quantize_convolutions(plain, lambda m: _timed_forward(m, forward_fn, placement, calibration))
            yield Optimized(candidate, placement, f"{name}, int8")
    if allowed.get("bf16"):
        half_model = copy.deepcopy(model if folded is None else folded).to(torch.bfloat16)
        half_placement = placement.with_(precision="bf16")
        yield Optimized(half_placement.model(half_model), half_placement, ", ".join(filter(None, (name, "bf16"))))
    if folded is not None:
        yield Optimized(placement.model(folded), placement, name)


class _Tracer(Tracer):
    """Keeps every linear layer whole, also of a class of timm's own: hooks on it, as on a head, are called."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Linear) or super().is_leaf_module(m, module_qualified_name)


def fold_batchnorm(model: nn.Module) -> nn.Module | None:
    """A copy of `model` in eval mode with each BatchNorm folded into the convolution before it; None if impossible.

    Tracing requires a forward pass that does not branch on values, as in the models here and in torchvision.
    """
    if not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        return None
    from torch.fx.experimental.optimization import fuse

    plain = copy.deepcopy(model)
    own_convolutions(plain, False)  # its forward pass branches on shapes
    try:
        return fuse(GraphModule(plain, _Tracer().trace(plain)), inplace=True, no_trace=True)
    except Exception:  # tracing can raise any error
        return None


def relative_error(outputs: Batch, expected: Batch) -> float:
    """The largest relative L2 error of the floating-point outputs; infinite where one is not finite."""
    error = 0.0
    for key, want in expected.items():
        if want.is_floating_point() and key != "loss":
            got, reference = outputs[key].double(), want.double()
            scale = reference.norm().item()
            error = max(error, (got - reference).norm().item() / scale if scale else got.norm().item())
    return error if error == error else float("inf")


def _timed_forward(model: nn.Module, forward_fn: ForwardFn, placement: Placement, batch: Batch) -> tuple[float, Batch]:
    placement.synchronize()
    clock = time.perf_counter()
    with torch.inference_mode(), placement.autocast():
        outputs = forward_fn(model, batch)
    placement.synchronize()
    return time.perf_counter() - clock, outputs
