"""Steps of training and evaluation on a stand-in for a GPU, and what a GPU would have waited for.

``python stand_in_device.py MODEL[:OPTIMIZER[:MISTAKE]] ...``; ``eval-MISTAKE`` is made in evaluation.

The tensors are torch's fake ones: they know device, shape and type, and nothing else. An operator on tensors of two
devices fails as on a GPU. The device is torch's Python backend, which stays registered: hence a process of its own.
Prints a JSON object: for each case the faults of an optimizer step, and of an evaluation's step, on a batch that is on
the device already. A step that could be captured in a CUDA graph runs the same operators on the same shapes each time.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_recipes import small_recipe
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from bigmodel_cli.core.answering import FitsToVal
from bigmodel_cli.engine.build.optimizer import build_optimizer
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.loop import train_step
from bigmodel_cli.engine.training.run import Run, StepResult
from bigmodel_cli.engine.training.timer import Timer
from bigmodel_cli.optim import optimizers

DEVICE = "standin"
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "_unique2", "unique_dim")
"""Operators whose result the host must know: it waits until the device has computed it."""
DYNAMIC = ("two-tower",)
"""Models whose loss takes the distinct items of a batch: their number is known to the device alone, so it waits."""
MISTAKES: dict[str, Callable[[torch.Tensor], Any]] = {
    "copy": lambda out: out.cpu(),
    "make": lambda out: torch.zeros(3),
    "item": lambda out: out.sum().item(),
    "truth": lambda out: bool(out.sum() > 0),
    "nonzero": torch.nonzero,
    "constant": lambda out: torch.tensor([1.0], device=out.device),
    "mix": lambda out: out + torch.ones(out.shape),
    "branch": lambda out: [out.clone() for _ in range(next(TURNS) % 2)],
}
"""What a model's forward pass must not do with its output: the check has to notice each."""
TURNS = itertools.count()


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
        self.operators: list[tuple[str, Any]] = []
        """Each operator, and the shapes of its tensors."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        given = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        if DEVICE in given and name in WAITING:
            self.faults.append(f"waits: {name}")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        self.operators.append((str(function), [tuple(x.shape) for x in tensors]))
        out = function(*args, **(kwargs or {}))
        made = {x.device.type for x in tree_leaves(out) if isinstance(x, torch.Tensor)}
        if "cpu" in made and DEVICE in given:
            self.faults.append(f"copies to the CPU: {name}")
        elif "cpu" in made and not given:
            self.faults.append(f"makes on the CPU: {name}")
        return out


def assembled(folder: Path, model: str, optimizer: str) -> Run:
    torch.manual_seed(0)
    return assemble(small_recipe(folder, model, optimizer={"name": optimizer}), measure=False)


def twice(fake: FakeTensorMode, step: Callable[[], Any]) -> tuple[list[str], Any]:
    """What is wrong with the second and third call of `step`, since the first may fill caches; and its result.

    The last fault is the error that ended it.
    """
    with Recorder() as recorder, Constants(fake, recorder.faults):
        try:
            step()
            runs = []
            recorder.faults.clear()
            for _ in range(2):
                recorder.operators.clear()
                result = step()
                runs.append(list(recorder.operators))
        except RuntimeError as error:
            return [*recorder.faults, str(error).partition("\n")[0][:200]], None
    found = list(dict.fromkeys(recorder.faults))
    return found + ["other operators each time"] * (runs[0] != runs[1]), result


def faults(fake: FakeTensorMode, folder: Path, model: str, optimizer: str = "adamw", mistake: str = "") -> list[str]:
    """The faults of a step of training, and of one of evaluation."""
    run = assembled(folder, model, optimizer)
    raw, first = next(run.batches.steps(0)), run.val.gather(torch.arange(min(len(run.val), 8)))
    count = run.task.count(raw)  # in a run the batch is counted on the CPU, before it is copied
    object.__setattr__(run.task, "count", lambda raw: count)
    with fake:

        def moved(x: torch.Tensor) -> torch.Tensor:
            return fake.from_tensor(x).to(DEVICE)

        network: nn.Module = run.model._apply(moved)
        if mistake:

            def hook(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
                if module.training != mistake.startswith("eval-"):
                    MISTAKES[mistake.removeprefix("eval-")](out)
                return out

            network.register_forward_hook(hook)
        run = dataclasses.replace(
            run,
            model=network,
            forward=network,
            optimizer=build_optimizer(run.recipe, network, run.adapted.rates),
            placement=OnGpu(**vars(run.placement) | {"device": torch.device(DEVICE, 0)}),
            timer=Timer(),
        )
        run.train_mode()
        batch, val = ({k: moved(v) for k, v in part.items()} for part in (raw, first))

        def trained() -> StepResult:
            result = train_step(run, batch)
            run.progress.step += 1
            return result

        def evaluated() -> dict[str, torch.Tensor]:
            with torch.no_grad():
                prepared = run.task.prepare(val)
                score = run.task.outputs if isinstance(run.task, FitsToVal) else run.task.evaluate
                return score(network, prepared)

        found, result = ([], None) if model in DYNAMIC else twice(fake, trained)
        if result and {x.device.type for x in (result.loss, result.norm, result.finite)} != {DEVICE}:
            found.append("the result is not on the device")
        network.eval()
        more, sums = twice(fake, evaluated)
        if sums and {x.device.type for x in sums.values()} != {DEVICE}:
            more.append("a sum is not on the device")
    return [*found, *(f"evaluation {fault}" for fault in more)]


if __name__ == "__main__":
    optimizers._fused = lambda named: True  # as on CUDA: the kernel reads on the device whether to step
    _setup_privateuseone_for_python_backend(DEVICE)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with tempfile.TemporaryDirectory() as made:
        found = {case: faults(mode, Path(made), *case.split(":")) for case in sys.argv[1:]}
    sys.stdout.write(json.dumps(found) + "\n")
