"""A run: everything that training needs, made once by ``assemble``, and saved whole by ``Run.state``."""

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
from bigmodel_cli.engine.training.timer import Timer

Event = dict[str, Any]
REFERENCES = "said"  # what a checkpoint calls a run's reference outputs


@dataclass
class Progress:
    """Where a run is. All of it is in the checkpoint, so a resumed run is the unbroken one."""

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
    """Of the recipe's rate: halved each time the run went back to a checkpoint (``train.skip_nonfinite``)."""


@dataclass(frozen=True)
class StepResult:
    """What a step gave, still on its device: `loss` is a sum over `count` units, `norm` the gradient's."""

    loss: Tensor
    norm: Tensor
    finite: Tensor
    count: int


@dataclass
class Recovery:
    """What the loop did about bad luck since this process began. No checkpoint needs it."""

    bad_steps: int = 0
    """Steps in a row, up to now, that were not finite."""
    num_micro_batches: int = 1
    """At least so many in a step: doubled each time memory runs out."""


@dataclass(frozen=True)
class Hooks:
    """What whoever starts a run wants of it. By default it trains in silence, to its end, and saves nothing."""

    on_event: Callable[[Event], None] = lambda event: None
    """Takes events (plain dicts); the commands decide how they look."""
    should_stop: Callable[[Run], bool] = lambda run: False
    """Asked after each step, and in each batch of an evaluation."""
    save: Callable[[Run, bool], None] = lambda run, best: None
    roll_back: Callable[[Run], bool] = lambda run: False
    """Restore the last checkpoint; False where there is none."""


@dataclass(frozen=True, eq=False)
class Run:
    """One training run. Nothing of it is replaced once it is made; what changes are the objects that it holds."""

    recipe: Recipe
    task: Task
    model: nn.Module
    forward: nn.Module
    """`model`, compiled where the placement says so: what training calls. They share every tensor."""
    ema: AveragedModel | None
    adapted: Adapted
    optimizer: torch.optim.Optimizer
    lr_factor: Callable[[int], float]
    """The schedule: of `base_lrs`, by step."""
    base_lrs: list[float]
    batches: Batches
    val: Source
    total_steps: int
    """0 where a method solves for the weights: no step is taken then."""
    placement: Placement
    meta: dict[str, Any]
    notes: list[str]
    splits: frozenset[str]
    """The splits that the data has of its own."""
    hooks: Hooks = Hooks()
    submodule: str = ""
    """Where batches go in: the head where they are features of a frozen backbone; "" is the whole model."""
    reference_outputs: dict[str, Batch] = field(default_factory=dict)
    """By split, what the start answered for each sample (``adapted.once``)."""
    progress: Progress = field(default_factory=Progress)
    recovery: Recovery = field(default_factory=Recovery)
    pending_steps: deque[StepResult] = field(default_factory=deque)
    """Steps whose results have not been read yet."""
    timer: Timer = field(default_factory=Timer)
    parallel: Parallel = field(default_factory=Parallel)
    """Over which processes this run is spread."""

    def emit(self, event: Event) -> None:
        self.hooks.on_event(event)

    def should_stop(self) -> bool:
        return self.hooks.should_stop(self)

    @property
    def frozen(self) -> Frozen:
        """What does not train, from the first step to the last."""
        return self.adapted.frozen

    @property
    def eval_model(self) -> nn.Module:
        """The averaged model where there is one: the one that is evaluated, kept as best and exported."""
        model = self.model if self.ema is None else self.ema.module
        return model.get_submodule(self.submodule)

    @property
    def lr(self) -> float:
        return max(group["lr"] for group in self.optimizer.param_groups)

    def set_lr(self) -> None:
        """The schedule, a pure function of the step: nothing of it needs saving but the step."""
        factor = self.lr_factor(self.progress.step)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor * self.progress.lr_scale

    def train_mode(self) -> None:
        """Train mode, except for frozen modules: frozen BatchNorm keeps its statistics too."""
        self.model.train()
        held = self.adapted.stage(self.progress.epoch / self.recipe.train.epochs)
        if held is not None:  # a pure function of the epoch, so that a resumed run is in the same stage
            still = held.tensors | self.frozen.tensors
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name not in still)
        for module in (*self.frozen.modules, *(held.modules if held else ())):
            module.eval()

    def state(self, whole: bool = True) -> dict[str, Any]:
        """The checkpoint (RELIABILITY: "The checkpoint file"), plain values and tensors only. Every rank calls it.

        Where tensors are cut over the ranks rank 0 gets them `whole`, or each rank its own parts.
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
            "meta": {**self.meta, "env": self.environment(), "created": time.time()},
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
    """The seed of what each rank draws for itself (dropout); the recipe's own on rank 0."""
    return seed + 1_000_003 * rank


def environment(placement: Placement, world: int) -> dict[str, Any]:
    """What bit-exact resume depends on beside the recipe, in a job of `world` processes."""
    return {
        "bigmodel": bigmodel_cli.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": device_name(placement.device),
        **placement.choices(),
        "world": world,
    }
