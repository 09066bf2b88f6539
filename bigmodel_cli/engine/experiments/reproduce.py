"""Reproduce a run, from its record or with a resume in the middle, and report the differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.event_log import read_events, read_state
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.build.data import load_data
from bigmodel_cli.engine.build.load import recipe_and_spec
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.training.assemble import assemble, execute
from bigmodel_cli.engine.training.run import REFERENCES, Event, Hooks


@dataclass(frozen=True)
class Record:
    """The record of a finished run: everything needed to reproduce it."""

    folder: Path
    recipe: Recipe
    state: Mapping[str, Any]

    @property
    def environment(self) -> Mapping[str, Any]:
        return self.state["meta"]["env"]  # type: ignore[no-any-return]

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the last epoch in the run's log."""
        return last_metrics(self.folder)


@dataclass(frozen=True)
class Difference:
    """One difference between two runs."""

    what: str
    then: Any
    now: Any


def record(folder: Path, data_dir: Path | None) -> Record:
    """Load the record of the run in `folder`.

    Raises:
        InputError: the folder has no finished run, or its data has changed.
    """
    state = read_state(folder)
    if state is None:
        raise InputError(f"{folder}: no run", "expected a run folder with a status.json")
    if state != "done":
        hint = f"bigmodel train --resume --out {folder}"
        raise InputError(f"{folder}: the run is {state}", "expected one that is done", hint)
    saved = checkpoint.load(folder / "last.pt")
    recipe, spec = recipe_and_spec(saved, str(folder / "last.pt"))
    if data_dir is not None:
        recipe = resolve(
            [Layer("record", recipe.to_dict()), Layer("--data-dir", {"data": {"dir": str(data_dir)}})]
        ).recipe
    then = saved["meta"]["data"].get("fingerprint")
    now = load_data(recipe.data, spec, recipe.task).fingerprint
    if then != now:
        raise InputError(f"{folder}: trained on data {str(then)[:16]}", f"the data now is {now[:16]}", "--data-dir DIR")
    return Record(folder, recipe, saved)


def compare(then: Record, folder: Path) -> tuple[bool, list[Difference]]:
    """Return whether the run in `folder` has the same final weights as `then`, and all differences."""
    new_state = checkpoint.load(folder / "last.pt")
    one, other = ({k: s[k] for k in ("model", "model_ema")} for s in (then.state, new_state))
    same = checkpoint.digest(one) == checkpoint.digest(other)
    changes = _changed_leaves("", _environment(then.state), _environment(new_state))
    if not same:
        changes += _changed_leaves("", then.metrics, last_metrics(folder))
        changed = [d.what for d in differences({"model": one["model"]}, {"model": other["model"]})]
        changes.append(Difference("weights that differ", 0, f"{len(changed)} of {len(one['model'])} tensors"))
    return same, changes


def _environment(state: Mapping[str, Any]) -> dict[str, Any]:
    return {**state["meta"]["env"], **state["meta"].get("origin", {})}


def _changed_leaves(name: str, then: Any, now: Any) -> list[Difference]:
    """Return the leaves that differ between two nested dictionaries."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = sorted({*then, *now})
        return [d for k in keys for d in _changed_leaves(f"{name}.{k}" if name else k, then.get(k), now.get(k))]
    return [] if then == now else [Difference(name, then, now)]


def last_metrics(folder: Path) -> dict[str, Any]:
    """Return the metrics of the last epoch in a run's log; empty if there is none."""
    metrics: dict[str, Any] = {}
    for event in read_events(folder / "metrics.jsonl"):
        if event["event"] == "epoch":
            metrics = {k: v for k, v in event.items() if k == "train_loss" or k.startswith("val_")}
    return metrics


def verify_resume(
    recipe: Recipe, steps: int, folder: Path, on_event: Callable[[Event], None]
) -> tuple[list[Difference], int]:
    """Train `steps` steps without interruption, and again with a save and a resume in the middle.

    Returns the differences in the final weights, averages, optimizer state, progress and
    random number state, and how many values were compared.

    Raises:
        InputError: the recipe takes fewer than two steps.
    """
    shortened = resolve([Layer("recipe", recipe.to_dict()), Layer("--steps", {"train": {"max_steps": steps}})]).recipe

    def trained(stop_at: int | None, resumed: dict[str, Any] | None) -> dict[str, Any]:
        hooks = Hooks(on_event, should_stop=lambda run: run.progress.step == stop_at)
        run = assemble(shortened, resumed, recorded, hooks=hooks)
        if run.total_steps < 2:
            what = f"method {recipe.start.method} takes {run.total_steps} steps here"
            raise InputError(what, "expected at least 2, to stop in the middle")
        execute(run)
        return run.state()

    recorded: Mapping[str, Any] | None = None
    uninterrupted = trained(None, None)
    recorded = uninterrupted["meta"]["env"]  # both runs use the same autotuned settings
    last_step = uninterrupted["progress"]["step"]
    checkpoint.save(folder / "half.pt", trained(last_step // 2, None))
    torch.manual_seed(987654321)  # a resumed process starts from a different random state
    resumed_state = trained(None, checkpoint.load(folder / "half.pt"))
    parts = ("model", "model_ema", "optimizer", "progress", "rng", REFERENCES)
    one, other = ({k: state.get(k) for k in parts} for state in (uninterrupted, resumed_state))
    return differences(one, other), _count(one)


def differences(one: Any, other: Any, name: str = "") -> list[Difference]:
    """Return the tensors and values that differ, by path. They are compared bit for bit, so NaN equals NaN."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = sorted({*one, *other}, key=str)
        return [d for k in keys for d in differences(one.get(k), other.get(k), f"{name}.{k}" if name else str(k))]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{name}[{i}]")]
    if checkpoint.digest([one]) == checkpoint.digest([other]):
        return []
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
        largest = (one.double() - other.double()).abs().max().item()
        return [Difference(name, 0.0, f"up to {largest:.3g}")]
    return [Difference(name, one, other)]


def _count(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_count(v) for v in value.values())
    return sum(_count(v) for v in value) if isinstance(value, (list, tuple)) else 1
