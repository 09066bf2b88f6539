"""Model-FLOPs utilisation (Chowdhery et al. 2022): the FLOP/s of a model in training over the device's peak.

The FLOPs are three times those of the forward pass's products: the backward pass has two products for each.
Recomputation, elementwise operators and the optimizer do not count.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import torch

from bigmodel_cli.engine.plan.devices import DEVICES

if TYPE_CHECKING:
    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.core.types import Task
    from bigmodel_cli.engine.device.placement import Placement

MATMUL_SIDE, REPEATS = 1024, 5


def utilisation(recipe: Recipe, task: Task, placement: Placement, world: int = 1) -> dict[str, Any]:
    """``flops_per_unit`` of training (a token, an image), the ``peak`` of all devices in FLOP/s, and ``which`` peak.

    Empty where the model's FLOPs cannot be counted.
    """
    from bigmodel_cli.engine.build.model import build_model
    from bigmodel_cli.engine.plan.flops import layers
    from bigmodel_cli.models.layers.meta_init import init_on_meta

    flops = 0
    # Some models cannot run on the meta device; the run's random numbers must not depend on this build.
    with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]), init_on_meta():
        _, flops = layers(build_model(recipe, task.spec), task)
    units = 1 if task.unit_axis is None else task.example(1)[-1].shape[task.unit_axis]
    if not flops:
        return {}
    peak, which = peak_of(placement)
    return {"flops_per_unit": 3 * flops / units, "peak": peak * world, "which": which}


def peak_of(placement: Placement) -> tuple[float, str]:
    """FLOP/s of matrix products on the device in the run's precision: from its data sheet, else measured."""
    if placement.device.type == "cuda":
        device_label = torch.cuda.get_device_name(placement.device).replace("-", " ").upper()
        for name, device in DEVICES.items():
            if name.partition("-")[0].replace("RTX", "RTX ").upper() in device_label:
                peak = device.bf16 if placement.precision == "bf16" and device.bf16 else device.fp32
                return peak, f"the data sheet's for {name}, {placement.precision}, dense"
    dtype = torch.bfloat16 if placement.precision == "bf16" else torch.float32
    a = torch.ones(MATMUL_SIDE, MATMUL_SIDE, device=placement.device, dtype=dtype)
    shortest = float("inf")
    for _ in range(REPEATS):
        clock = time.perf_counter()
        a @ a
        placement.synchronize()
        shortest = min(shortest, time.perf_counter() - clock)
    return (
        2 * MATMUL_SIDE**3 / shortest,
        f"measured here: a {placement.precision} product of {MATMUL_SIDE} x {MATMUL_SIDE}",
    )
