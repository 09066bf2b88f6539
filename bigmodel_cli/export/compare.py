"""Compare the outputs of an export with its source's. Shapes: B batch, K classes; (B,T,K) for language models."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.types import Batch, Task
from bigmodel_cli.export.folder import Run
from bigmodel_cli.tasks.answers import answer_of

if TYPE_CHECKING:
    from numpy import ndarray

EXTRA_BATCH_SIZES = (1, 3)
"""Batch sizes to try in addition to that of the inputs."""
RESAMPLES = 1000

Sums = dict[str, float]
"""A sample's metric sums, from the task's `evaluate`."""


@dataclass
class Differences:
    """Absolute differences of the logits.

    `largest` covers every logit of every batch, including the extra batch sizes. The mean
    and the fraction of equal top-1 predictions count each input once.
    """

    inputs: int = 0
    largest: float = 0.0
    ours: list[Sums] = field(default_factory=list)
    theirs: list[Sums] = field(default_factory=list)
    _sum: float = 0.0
    _logits: int = 0
    _equal: int = 0
    _answers: int = 0

    @property
    def mean(self) -> float:
        return self._sum / max(self._logits, 1)

    @property
    def equal_answers(self) -> float:
        return self._equal / max(self._answers, 1)

    def add(self, ours: Tensor, theirs: Tensor, same: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        """Add the logits of both for the same batch; with `same`, which compares answers, as new inputs.

        Raises:
            ValueError: the shapes differ, which broadcasting could hide.
        """
        if ours.shape != theirs.shape:
            raise ValueError(f"a batch of {len(ours)} gives {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
        apart = (ours - theirs).abs()
        most = float(apart.max())
        self.largest = max(self.largest, most) if most == most and self.largest == self.largest else float("nan")
        if same is not None:
            equal = same(ours, theirs)
            self.inputs += len(ours)
            self._sum += float(apart.double().sum())
            self._logits += apart.numel()
            self._equal += int(equal.sum())
            self._answers += equal.numel()


def compare(
    model: nn.Module, run: Run, task: Task, prepared: Sequence[Batch], given: Sequence[tuple[ndarray, ...]]
) -> Differences:
    """Compare `model` on the `prepared` batches with the export on its `given` inputs: the same, or raw pixels."""
    found, kind = Differences(), answer_of(task)
    with torch.inference_mode():
        for batch, arrays in zip(prepared, given, strict=True):
            ours = model(*(batch[name] for name in task.inputs)).float()
            theirs = torch.from_numpy(run(*arrays)).float()
            found.add(ours, theirs, lambda a, b: kind.equal(a, b, task.spec))
            found.ours += _sums(task, ours, batch)
            found.theirs += _sums(task, theirs, batch)
        first = tuple(prepared[0][name] for name in task.inputs)
        for tensors, arrays in zip(_other_shapes(first), _other_shapes(given[0]), strict=True):
            found.add(model(*tensors).float(), torch.from_numpy(run(*arrays)).float())
    return found


def rounding(model: nn.Module, inputs: Sequence[Tensor]) -> float:
    """The largest difference of a logit of `model` between fp32 and fp64; 0 where it does not run in fp64."""
    with contextlib.suppress(RuntimeError, TypeError), torch.inference_mode():
        exact = copy.deepcopy(model).double()(*(x.double() if x.is_floating_point() else x for x in inputs))
        return float((model(*inputs).double() - exact).abs().max())
    return 0.0


def _other_shapes(inputs: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Other batch sizes, and another length for tokens (B,T), to catch shapes baked into the file."""
    found = [tuple(x[:size] for x in inputs) for size in EXTRA_BATCH_SIZES]
    if any(x.ndim == 2 for x in inputs):
        found.append(tuple(x[:, : max(x.shape[1] // 2, 1)] if x.ndim == 2 else x for x in inputs))
    return found


def _sums(task: Task, logits: Tensor, batch: Batch) -> list[Sums]:
    """Each sample's sums, from the logits that are there already."""
    samples = [({k: v[i : i + 1] for k, v in batch.items()}, logits[i : i + 1]) for i in range(len(logits))]
    return [{k: float(v) for k, v in task.evaluate(PrecomputedModel(one), part).items()} for part, one in samples]


def bootstrap_metrics(task: Task, sums: Sequence[Sums]) -> dict[str, dict[str, float]]:
    """The task's metrics, each with its 95% percentile bootstrap interval over samples (Efron 1979)."""

    def metrics(chosen: Sequence[Sums]) -> Mapping[str, float]:
        return task.summarise({k: sum(s[k] for s in chosen) for k in sums[0]})  # type: ignore[no-any-return]

    draw = random.Random(0)
    drawn = [metrics(draw.choices(sums, k=len(sums))) for _ in range(RESAMPLES)]
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    found = {}
    for name, value in metrics(sums).items():
        low, high = torch.tensor([d[name] for d in drawn], dtype=torch.float64).quantile(ends).tolist()
        found[name] = {"value": value, "low": low, "high": high}
    return found


@dataclass(frozen=True)
class PrecomputedModel:
    """A model that returns given logits; with targets and a loss, the per-token loss, like a language model."""

    logits: Tensor

    def __call__(self, *arguments: Any, document: Tensor | None = None) -> Tensor:
        # An export has no document mask, so both sides were run without one.
        if not callable(loss := arguments[-1]) or isinstance(loss, Tensor):
            return self.logits
        targets = arguments[-2]
        flat = targets.flatten()
        return (loss(self.logits.flatten(0, -2), flat.clamp(min=0)) * (flat >= 0)).view(targets.shape)
