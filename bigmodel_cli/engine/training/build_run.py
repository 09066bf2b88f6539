"""Recipe -> Built: the only place that builds everything a run is made of."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import methods, schedules
from bigmodel_cli.core.sources import VariableLengthSource
from bigmodel_cli.core.types import Adapted, DataBundle, Source, Start, Task
from bigmodel_cli.data.batches import Batches
from bigmodel_cli.engine.build.data import load_data, train_and_val
from bigmodel_cli.engine.build.load import TrainedModel, load_trained, recipe_and_spec
from bigmodel_cli.engine.build.model import head_name
from bigmodel_cli.engine.build.optimizer import build_optimizer
from bigmodel_cli.engine.device.autotune import autotune
from bigmodel_cli.engine.device.device_cache import cache_on_device
from bigmodel_cli.engine.device.placement import Placement, choose_placement
from bigmodel_cli.engine.device.process import configure_process
from bigmodel_cli.engine.distributed.process_group import SINGLE_PROCESS, Group
from bigmodel_cli.engine.distributed.strategy import choose_strategy
from bigmodel_cli.engine.training.cached_features import can_cache_features
from bigmodel_cli.engine.training.class_weighted_loss import imbalance_notes, labels_of, weighted
from bigmodel_cli.engine.training.provenance import provenance
from bigmodel_cli.engine.training.restore import restore
from bigmodel_cli.engine.training.run import Run, environment, rank_seed
from bigmodel_cli.engine.training.sharded_build import (
    agreed,
    batches_for,
    build_ema,
    builds_on_meta,
    on_device,
    shards_parameters,
    with_width,
)
from bigmodel_cli.engine.training.starting_point import check_task, task_and_model, trained_start
from bigmodel_cli.engine.training.timer import Timer
from bigmodel_cli.models.layers.meta_init import parameters_on_meta


@dataclass(frozen=True)
class Built:
    """All that a run is made of, and which of its phases is still to come: see ``assemble.prepare``."""

    draft: Run
    """It has its state, a resumed one's from the checkpoint, but batches of raw samples only."""
    caches_features: bool
    """Whether a frozen backbone runs once, and the head trains on the features that it gives."""


@dataclass(frozen=True)
class _Loaded:
    """The data, and the trained model that the recipe starts from."""

    trained: TrainedModel | None
    bundle: DataBundle
    train: Source
    val: Source


@dataclass(frozen=True)
class _Parts:
    """What a run is made of, before it is spread over processes."""

    task: Task
    model: nn.Module
    adapted: Adapted
    bundle: DataBundle
    batches: Batches
    val: Source
    steps: int
    caches_features: bool
    notes: list[str]


def build(
    recipe: Recipe,
    resumed: Mapping[str, Any] | None = None,
    recorded: Mapping[str, Any] | None = None,
    *,
    measure: bool = True,
    group: Group = SINGLE_PROCESS,
    notes: Sequence[str] = (),
) -> Built:
    """Build everything that `recipe` names, on its device.

    `resumed` is the checkpoint to continue from: its preprocessing is kept, and the
    checkpoint it once started from is not needed any more. `recorded` is the environment of
    a run that is done again: what was measured for it then is not measured anew.
    Without `measure` the placement is the default one: for a look at a run, not for the run.
    Every process of `group` calls this, for its share of the run. `notes` come before the run's own.

    Raises:
        BigmodelError: data, checkpoint or device is not there or does not fit.
    """
    group = with_width(group, recipe)
    placement = choose_placement(recipe.placement, resumed["meta"]["env"] if resumed else recorded, group.ranks)
    configure_process(placement)
    parts = _parts(recipe, resumed, placement, group)
    solves = parts.adapted.solve is not None
    if group.world > 1 and solves:
        raise InputError(f"method {recipe.start.method} runs in one process", hint="without --nproc")
    if measure and resumed is None and recorded is None and not solves and not parts.caches_features:
        if group.is_main and not shards_parameters(recipe, group):  # alone: what it finds holds for all, who wait
            placement = _measured(recipe, placement, parts)
        placement = agreed(recipe, placement, parts.model, group)
    run = _run(
        recipe, parts, placement, group, [*notes, *parts.notes, *_changed_environment(placement, group, resumed)]
    )
    if group.data_parallel_rank:
        torch.manual_seed(rank_seed(recipe.train.seed, group.data_parallel_rank))
    if resumed is not None:
        restore(run, resumed)
    return Built(run, parts.caches_features)


def _parts(recipe: Recipe, resumed: Mapping[str, Any] | None, placement: Placement, group: Group) -> _Parts:
    loaded = _load(recipe, resumed)
    task, model, adapted, notes = _network(recipe, loaded, resumed, placement, group)
    bundle, balance = loaded.bundle, recipe.train.balance
    labels = labels_of(loaded.train, balance) if balance != "none" else None
    uneven = imbalance_notes(loaded.train, bundle.spec.classes, balance)
    train, val = cache_on_device(loaded.train, placement), cache_on_device(loaded.val, placement)
    batches = batches_for(recipe, train, labels if balance == "sampling" else None, group)
    task = _objective(task.for_data(bundle.spec), adapted, labels if balance == "loss" else None)
    caches, why_not = can_cache_features(recipe, task, model, adapted, len(train) + len(val))
    return _Parts(
        task=task,
        model=model,
        adapted=adapted,
        bundle=bundle,
        batches=batches,
        val=val,
        steps=min(recipe.train.epochs * batches.steps_per_epoch, recipe.train.max_steps or sys.maxsize),
        caches_features=caches and group.world == 1,
        notes=[*bundle.notes, *notes, *uneven, *filter(None, [why_not])],
    )


def _run(recipe: Recipe, parts: _Parts, placement: Placement, group: Group, notes: list[str]) -> Run:
    """The parts spread over the processes of `group`, with an optimizer and a schedule."""
    model, adapted = parts.model, parts.adapted
    parallel = choose_strategy(group, recipe, placement, model, unused=bool(adapted.stages))
    ema = build_ema(recipe, model, parallel)  # before it is wrapped
    forward = placement.compiled(parallel.wrap(model))
    optimizer = build_optimizer(recipe, model, adapted.rates)
    return Run(
        recipe=recipe,
        task=parts.task,
        model=model,
        forward=forward,
        ema=ema,
        adapted=adapted,
        optimizer=optimizer,
        lr_factor=schedules.get(recipe.schedule.name)(parts.steps, **recipe.schedule.options),
        base_lrs=[
            g["lr"] * (group.data_parallel_size if recipe.parallel.scale_lr else 1) for g in optimizer.param_groups
        ],
        batches=parts.batches,
        val=parts.val,
        total_steps=0 if adapted.solve else parts.steps,
        placement=placement,
        timer=Timer(placement.synchronize if placement.lag else None),
        meta=_meta(recipe, parts.task, parts.bundle),
        notes=notes,
        splits=frozenset(parts.bundle.load),
        parallel=parallel,
    )


def _load(recipe: Recipe, resumed: Mapping[str, Any] | None) -> _Loaded:
    check_task(recipe)
    trained = None if resumed else trained_start(recipe)
    like = recipe_and_spec(resumed, "--resume")[1] if resumed else trained.task.spec if trained else None
    bundle = load_data(recipe.data, like)
    return _Loaded(trained, bundle, *train_and_val(bundle, recipe.data))


def _network(
    recipe: Recipe, loaded: _Loaded, resumed: Mapping[str, Any] | None, placement: Placement, group: Group
) -> tuple[Task, nn.Module, Adapted, list[str]]:
    """The task, the model where it runs, what the fine-tuning method decided about it, and what there is to say."""
    torch.manual_seed(recipe.train.seed)
    with parameters_on_meta(builds_on_meta(recipe, group, resumed is not None)):
        task, model, notes = task_and_model(recipe, loaded.bundle, loaded.train, resumed, loaded.trained)
    model = on_device(recipe, model, placement, group)
    start = Start(model, head_name(recipe), _open, task, loaded.bundle.spec)
    return task, model, methods.get(recipe.start.method)(start, **recipe.start.options), notes


def _open(path: str) -> TrainedModel:
    return load_trained(Path(path))


def _objective(task: Task, adapted: Adapted, labels: Tensor | None) -> Task:
    """`task` with the loss that trains: each class of `labels` (n,) weighed, and what the method adds to it."""
    task = task if labels is None else weighted(task, labels)
    return adapted.objective(task) if adapted.objective else task


def _changed_environment(placement: Placement, group: Group, resumed: Mapping[str, Any] | None) -> list[str]:
    """A line for each thing that bit-exact resume depends on and that is not as it was."""
    if resumed is None:
        return []
    then = {"world": 1, **resumed["meta"]["env"]}
    now = environment(placement, group.world)
    lines = (f"{k}: {then.get(k)} then, {v} now" for k, v in now.items() if then.get(k) != v)
    return [f"resumed in another environment: {line}" for line in lines]


def _measured(recipe: Recipe, placement: Placement, parts: _Parts) -> Placement:
    """The placement that real steps of this run found fastest."""
    for module in parts.adapted.frozen.modules:
        module.eval()
    batches = parts.batches
    steps = batches.order(0).tensor_split(batches.steps_per_epoch)
    first = steps[0].tensor_split(batches.shards)[0].tensor_split(recipe.train.accumulate)[0]
    values = recipe.to_dict()
    about = [values["model"], values["augment"], values["loss"], recipe.start.method, recipe.start.options]
    section = recipe.placement
    if section.compile == "auto" and isinstance(batches.source, VariableLengthSource):
        # Batches are as long as their texts: what is compiled for one shape is compiled again for the next.
        section = section.model_copy(update={"compile": False})
    return autotune(
        section,
        placement,
        parts.model,
        parts.task,
        lambda: batches.indexed_source.gather(first),
        parts.steps * recipe.train.accumulate,
        about,
    )


def _meta(recipe: Recipe, task: Task, bundle: DataBundle) -> dict[str, Any]:
    values = recipe.to_dict()
    spec = task.spec
    return {
        "arch": recipe.model.name,
        "arch_args": recipe.model.options,
        "task": task.name,
        "classes": list(spec.classes),
        "input": {"kind": spec.kind, **spec.to_dict()},
        "data": {**values["data"], "fingerprint": bundle.fingerprint, "spec": bundle.spec.to_dict()},
        "recipe": values,
        "origin": provenance(),
    }
