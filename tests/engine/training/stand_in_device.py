"""A training step on a stand-in for a GPU, and what a GPU would have waited for: ``python stand_in_device.py CASE ...``

The tensors are torch's fake ones: they know device, shape and type, and nothing else. An operator on tensors of two
devices fails as on a GPU. The device is torch's Python backend, which stays registered: hence a process of its own.
Prints a JSON object: for each case the faults of one optimizer step on a batch that is on the device already.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.build.optimizer import build_optimizer
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.loop import train_step
from bigmodel_cli.engine.training.timer import Timer
from bigmodel_cli.optim import optimizers

DEVICE = "standin"
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "_unique2", "unique_dim")
"""Operators whose result the host must know: it waits until the device has computed it."""
IMAGES = {"name": "synthetic_images", "size": 32, "count": 64, "classes": 10}
TEXT = {"name": "synthetic_text", "vocabulary": 64, "context": 16, "tokens": 1024}
MISTAKES: dict[str, Callable[[torch.Tensor], Any]] = {
    "copy": lambda out: out.cpu(),
    "make": lambda out: torch.zeros(3),
    "item": lambda out: out.sum().item(),
    "truth": lambda out: bool(out.sum() > 0),
    "nonzero": torch.nonzero,
    "constant": lambda out: torch.tensor([1.0], device=out.device),
    "mix": lambda out: out + torch.ones(out.shape),
}
"""What a model's forward pass must not do with its output: the check has to notice each."""


class OnGpu(Placement):
    """A placement whose results are read a step late, as on CUDA."""

    @property
    def lag(self) -> int:
        return 1


class Constants(TorchFunctionMode):
    """``torch.tensor`` with the device: a value of the host is copied there, which waits."""

    def __init__(self, fake: FakeTensorMode, faults: list[str]) -> None:
        super().__init__()
        self.fake, self.faults = fake, faults

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        method = function is torch.Tensor.new_tensor
        like = args[0].device if method else torch.device("cpu")
        device = torch.device(kwargs.get("device") or like)
        if function not in (torch.tensor, torch.Tensor.new_tensor) or device.type != DEVICE:
            return function(*args, **kwargs)
        self.faults.append("copies from the CPU: tensor")
        kwargs = {**kwargs, "device": "cpu"} | ({"dtype": kwargs.get("dtype", args[0].dtype)} if method else {})
        args = args[1:] if method else args
        with unset_fake_temporarily():
            value = torch.tensor(*args, **kwargs)
        return self.fake.from_tensor(value).to(device)


class Recorder(TorchDispatchMode):
    """What a step does that a GPU would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        given = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        if DEVICE in given and name in WAITING:
            self.faults.append(f"waits: {name}")
        out = function(*args, **(kwargs or {}))
        made = {x.device.type for x in tree_leaves(out) if isinstance(x, torch.Tensor)}
        if "cpu" in made and DEVICE in given:
            self.faults.append(f"copies to the CPU: {name}")
        elif "cpu" in made and not given:
            self.faults.append(f"makes on the CPU: {name}")
        return out


def faults(fake: FakeTensorMode, model: str, optimizer: str = "adamw", mistake: str = "") -> list[str]:
    """The faults of a second optimizer step, since the first may fill caches; the last is the error that ended it."""
    data = TEXT if model.startswith("gpt") else IMAGES
    values = {"model": {"name": model}, "data": data, "train": {"batch_size": 8}, "optimizer": {"name": optimizer}}
    run = assemble(resolve([Layer("test", values)]).recipe, measure=False)
    raw = next(run.batches.steps(0))
    with fake:

        def moved(x: torch.Tensor) -> torch.Tensor:
            return fake.from_tensor(x).to(DEVICE)

        network: nn.Module = run.model._apply(moved)
        if mistake:
            network.register_forward_hook(lambda module, args, out: (MISTAKES[mistake](out), out)[1])
        run = dataclasses.replace(
            run,
            model=network,
            forward=network,
            optimizer=build_optimizer(run.recipe, network, run.adapted.rates),
            placement=OnGpu(**vars(run.placement) | {"device": torch.device(DEVICE, 0)}),
            timer=Timer(),
        )
        run.train_mode()
        batch = {k: moved(v) for k, v in raw.items()}
        with Recorder() as recorder, Constants(fake, recorder.faults):
            try:
                train_step(run, batch)
                run.progress.step += 1
                recorder.faults.clear()
                result = train_step(run, batch)
            except RuntimeError as error:
                return [*recorder.faults, str(error).partition("\n")[0][:200]]
        if {result.loss.device.type, result.norm.device.type, result.finite.device.type} != {DEVICE}:
            recorder.faults.append("the result is not on the device")
    return recorder.faults


if __name__ == "__main__":
    optimizers._fused = lambda named: True  # as on CUDA: the kernel reads on the device whether to step
    _setup_privateuseone_for_python_backend(DEVICE)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    found = {case: faults(mode, *case.split(":")) for case in sys.argv[1:]}
    sys.stdout.write(json.dumps(found) + "\n")
