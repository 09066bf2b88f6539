"""A run: everything that training needs. Built by ``assemble``, and saved by ``Run.state``."""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import bigmodel_cli
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.types import Adapted, Batch, Frozen, Source, Task
from bigmodel_cli.data.batches import Batches
from bigmodel_cli.engine.device.placement import Placement, device_name
from bigmodel_cli.engine.distributed.base import Parallel
from bigmodel_cli.engine.training.gradients import MeanGradient
from bigmodel_cli.engine.training.timer import Timer

Event = dict[str, Any]
REFERENCES = "said"  # the checkpoint key of the reference outputs; kept for old checkpoints


@dataclass
class Progress:
    """The progress of a run. All of it is in the checkpoint, so that a resumed run matches an uninterrupted one."""

    step: int = 0
    epoch: int = 0
    batch_in_epoch: int = 0
    samples_seen: int = 0
    best_metric: float | None = None
    best_loss: float = float("inf")
    best_epoch: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    lr_scale: float = 1.0
    """Factor of the learning rate. Halved each time the run is rolled back (``train.skip_nonfinite``)."""


@dataclass(frozen=True)
class StepResult:
    """The result of a step, still on the device: `loss` summed over `count` units, and the gradient `norm`."""

    loss: Tensor
    norm: Tensor
    finite: Tensor
    count: int


@dataclass
class Recovery:
    """How training recovered from errors in this process. Not saved in checkpoints."""

    bad_steps: int = 0
    """Consecutive steps so far that were not finite."""
    num_micro_batches: int = 1
    """The minimum per step. Doubled on each out of memory."""


@dataclass(frozen=True)
class Hooks:
    """Callbacks of a run. By default it logs nothing, saves nothing and trains to its last step."""

    on_event: Callable[[Event], None] = lambda event: None
    """Receives events (plain dicts). The commands format them."""
    should_stop: Callable[[Run], bool] = lambda run: False
    """Called after each step, and for each batch of an evaluation."""
    save: Callable[[Run, bool], None] = lambda run, best: None
    roll_back: Callable[[Run], bool] = lambda run: False
    """Restore the last checkpoint. Returns False if there is none."""


@dataclass(frozen=True, eq=False)
class Run:
    """One training run. Its fields are never reassigned; the objects in them change during training."""

    recipe: Recipe
    task: Task
    model: nn.Module
    forward: nn.Module
    """What training calls: `model`, compiled if the placement says so. Both share all tensors."""
    ema: AveragedModel | None
    adapted: Adapted
    optimizer: torch.optim.Optimizer
    lr_factor: Callable[[int], float]
    """The schedule: step -> factor of `base_lrs`."""
    base_lrs: list[float]
    batches: Batches
    val: Source
    total_steps: int
    """0 if the fine-tuning method solves for the head and takes no steps."""
    placement: Placement
    meta: dict[str, Any]
    notes: list[str]
    splits: frozenset[str]
    """The splits that the data set defines."""
    hooks: Hooks = Hooks()
    submodule: str = ""
    """The submodule that takes the batches: the head if features are cached, else "", the whole model."""
    reference_outputs: dict[str, Batch] = field(default_factory=dict)
    """By split, the initial model's outputs for each sample (``adapted.once``)."""
    progress: Progress = field(default_factory=Progress)
    recovery: Recovery = field(default_factory=Recovery)
    pending_steps: deque[StepResult] = field(default_factory=deque)
    """Steps with results that have not been read from the device yet."""
    timer: Timer = field(default_factory=Timer)
    parallel: Parallel = field(default_factory=Parallel)
    """How the run is distributed over processes."""
    gradients: MeanGradient = field(default_factory=MeanGradient)
    """How a step gets its gradients."""

    def emit(self, event: Event) -> None:
        self.hooks.on_event(event)

    def should_stop(self) -> bool:
        return self.hooks.should_stop(self)

    @property
    def frozen(self) -> Frozen:
        """What is frozen during the whole run."""
        return self.adapted.frozen

    @property
    def eval_model(self) -> nn.Module:
        """The model to evaluate and to export: the moving average (EMA) if there is one."""
        model = self.model if self.ema is None else self.ema.module
        return model.get_submodule(self.submodule)

    @property
    def lr(self) -> float:
        return max(group["lr"] for group in self.optimizer.param_groups)

    def set_lr(self) -> None:
        """Set the learning rates. The schedule is a pure function of the step, so only the step is saved."""
        factor = self.lr_factor(self.progress.step)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor * self.progress.lr_scale

    def train_mode(self) -> None:
        """Set train mode, except for frozen modules, so that frozen BatchNorm keeps its statistics."""
        self.model.train()
        stage = self.adapted.stage(self.progress.epoch / self.recipe.train.epochs)
        if stage is not None:  # a pure function of the epoch: a resumed run is in the same stage
            frozen = stage.tensors | self.frozen.tensors
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name not in frozen)
        for module in (*self.frozen.modules, *(stage.modules if stage else ())):
            module.eval()

    def state(self, whole: bool = True) -> dict[str, Any]:
        """Return the checkpoint as plain values and tensors; see docs/reliability.md. Every rank calls this.

        If tensors are sharded over ranks: with `whole`, rank 0 gets the full tensors; else each rank gets its shards.
        """
        self.parallel.average_buffers(self)
        rng: dict[str, Any] = self.random_state()
        if self.parallel.group.world > 1:
            rng["ranks"] = self.parallel.group.gather(rng)
        ema = None
        if self.ema is not None:
            ema = {**self.ema.module.state_dict(), "n_averaged": self.ema.n_averaged}
        state = {
            "format": "bigmodel.checkpoint",
            "version": 1,
            "model": dict(self.model.state_dict()),
            "model_ema": ema,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None,
            "scaler": None,
            "progress": asdict(self.progress),
            "rng": rng,
            **({REFERENCES: self.reference_outputs} if self.reference_outputs else {}),
            "meta": {**self.meta, **self.gradients.record(self), "env": self.environment(), "created": time.time()},
        }
        return self.parallel.gather_full(state, self.parallel.group.is_main) if whole else state  # type: ignore[no-any-return]

    def random_state(self) -> dict[str, Any]:
        rng = {"cpu": torch.get_rng_state()}
        if self.placement.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.placement.device)
        return rng

    def environment(self) -> dict[str, Any]:
        return environment(self.placement, self.parallel.group.world)


def rank_seed(seed: int, rank: int) -> int:
    """Return the seed of a rank's random numbers, such as dropout. On rank 0 it is the recipe's seed."""
    return seed + 1_000_003 * rank


def environment(placement: Placement, world: int) -> dict[str, Any]:
    """Return what bit-exact resume depends on besides the recipe, in a job of `world` processes."""
    return {
        "bigmodel": bigmodel_cli.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": device_name(placement.device),
        **placement.choices(),
        "world": world,
    }
