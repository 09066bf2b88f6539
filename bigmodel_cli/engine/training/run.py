"""A run: everything that training needs, built once by ``assemble`` and saved whole by ``state``."""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import bigmodel_cli
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.types import Adapted, Batch, Frozen, Source, Task
from bigmodel_cli.data.batches import Batches
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.distributed.base import Parallel
from bigmodel_cli.engine.training.timer import Timer

Event = dict[str, Any]


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
class Run:
    """One training run. `emit` takes events (plain dicts); the commands decide how they look."""

    recipe: Recipe
    task: Task
    model: nn.Module
    forward: nn.Module
    """`model`, compiled where the placement says so: what training calls. They share every tensor."""
    ema: AveragedModel | None
    adapted: Adapted
    optimizer: torch.optim.Optimizer
    factor: Callable[[int], float]
    base_lrs: list[float]
    batches: Batches
    val: Source
    total_steps: int
    placement: Placement
    meta: dict[str, Any]
    notes: list[str]
    splits: frozenset[str]
    """The splits that the data has of its own."""
    progress: Progress = field(default_factory=Progress)
    emit: Callable[[Event], None] = lambda event: None
    stop: Callable[[], bool] = lambda: False
    save: Callable[[Run, bool], None] = lambda run, best: None
    roll_back: Callable[[], bool] = lambda: False
    """Restore the last checkpoint; False where there is none."""
    tick: Callable[[], None] = lambda: None
    """Called after each step."""
    bad_steps: int = 0
    """Steps in a row, up to now, that were not finite."""
    num_micro_batches: int = 1
    caches_features: bool = False
    """Whether a frozen backbone runs once, and the head trains on what it said."""
    said: dict[str, Batch] = field(default_factory=dict)
    """By split, what the start said of each sample (``adapted.once``)."""
    part: str = ""
    """The submodule that batches go into: the head where they are features of a frozen backbone; "" is all of it."""
    pending_steps: deque[StepResult] = field(default_factory=deque)
    """Steps whose results have not been read yet."""
    timer: Timer = field(default_factory=Timer)
    parallel: Parallel = field(default_factory=Parallel)
    """Over which processes this run is spread."""

    @property
    def frozen(self) -> Frozen:
        """What does not train, from the first step to the last."""
        return self.adapted.frozen

    @property
    def eval_model(self) -> nn.Module:
        """The averaged model where there is one: the one that is evaluated, kept as best and exported."""
        model = self.model if self.ema is None else self.ema.module
        return model.get_submodule(self.part)

    @property
    def lr(self) -> float:
        return max(group["lr"] for group in self.optimizer.param_groups)

    def set_lr(self) -> None:
        """The schedule, a pure function of the step: nothing of it needs saving but the step."""
        factor = self.factor(self.progress.step)
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
            **({"said": self.said} if self.said else {}),
            "meta": {**self.meta, "env": self.environment(), "created": time.time()},
        }
        return self.parallel.gather_full(state, self.parallel.group.is_main) if whole else state  # type: ignore[no-any-return]

    def random_state(self) -> dict[str, Any]:
        rng = {"cpu": torch.get_rng_state()}
        if self.placement.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.placement.device)
        return rng

    def environment(self) -> dict[str, Any]:
        return {**environment(self.placement), "world": self.parallel.group.world}

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        """Continue from `state`: bit-exact in the same environment, else a line for each thing that differs.

        Raises:
            InputError: the checkpoint is of another recipe.
            KeyError, TypeError, ValueError, RuntimeError: its state does not fit.
        """
        self._check_same(state["meta"]["recipe"])
        if asdict(self.progress).keys() != state["progress"].keys():
            different = asdict(self.progress).keys() ^ state["progress"].keys()
            raise KeyError(f"progress: {', '.join(sorted(map(str, different))[:3])}")
        if (self.ema is None) != (state["model_ema"] is None):
            raise KeyError("model_ema")
        if self.adapted.once is not None:
            self.said = {split: {k: v.float() for k, v in said.items()} for split, said in state["said"].items()}
        self.model.load_state_dict(self.parallel.shard_state(state["model"], self.model.state_dict()))
        if self.ema is not None:
            ema = dict(state["model_ema"])
            self.ema.n_averaged.copy_(ema.pop("n_averaged"))
            self.ema.module.load_state_dict(self.parallel.shard_state(ema, self.ema.module.state_dict()))
        self.optimizer.load_state_dict(dict(self.parallel.shard_optimizer_state(state["optimizer"], self.optimizer)))
        self.progress = Progress(**state["progress"])
        self._restore_random_state(state["rng"])
        now, then = self.environment(), {"world": 1, **state["meta"]["env"]}
        return [f"{k}: {then.get(k)} then, {v} now" for k, v in now.items() if then.get(k) != v]

    def _restore_random_state(self, rng: Mapping[str, Any]) -> None:
        """This rank's own where the job is as large as it was; else rank 0 goes on, and the others begin anew."""
        group = self.parallel.group
        parts = rng.get("ranks", [rng])
        if len(parts) != group.world and not group.is_main:
            torch.manual_seed(rank_seed(self.recipe.train.seed + self.progress.step, group.rank))
            return
        mine = parts[group.rank]
        torch.set_rng_state(mine["cpu"])
        if self.placement.device.type == "cuda" and "cuda" in mine:
            torch.cuda.set_rng_state(mine["cuda"], self.placement.device)

    def _check_same(self, saved: Mapping[str, Any]) -> None:
        ours = self.recipe.to_dict()
        # A resumed run may run longer, look elsewhere for its data, or save and evaluate at other times.
        free = {
            ("train", "profile"),
            ("data", "dir"),
            ("train", "epochs"),
            ("train", "max_steps"),
            ("train", "save_steps"),
            ("train", "shard_above"),
        }
        free |= {("train", "eval_batch_size"), ("train", "patience"), ("train", "eval_epochs")}
        for section, values in ours.items():
            if section in ("placement", "parallel"):
                continue
            typed = Recipe.model_fields[section].get_default()
            # The name first: another model has other options, which would say less.
            for key in sorted(values.keys() | saved.get(section, {}).keys(), key=lambda k: (k != "name", k)):
                # What the recipe did not know of when the checkpoint was made was as it is by default.
                old, new = saved.get(section, {}).get(key, getattr(typed, key, None)), values.get(key)
                if old != new and (section, key) not in free:
                    raise InputError(
                        f"--resume: {section}.{key} is {new!r}, but the checkpoint was made with {old!r}",
                        hint=f"give {old!r} again, or start a new run with --out",
                    )


def rank_seed(seed: int, rank: int) -> int:
    """The seed of what each rank draws for itself (dropout); the recipe's own on rank 0."""
    return seed + 1_000_003 * rank


def environment(placement: Placement) -> dict[str, Any]:
    """What bit-exact resume depends on beside the recipe."""
    from bigmodel_cli.engine.device.placement import device_name

    return {
        "bigmodel": bigmodel_cli.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": device_name(placement.device),
        **placement.choices(),
    }
