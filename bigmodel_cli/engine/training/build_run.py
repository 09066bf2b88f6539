"""Build a run from its recipe. This is the only place that builds all of its components."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.answering import Balances
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.interactions import is_solved
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import schedules
from bigmodel_cli.core.sources import VariableLengthSource
from bigmodel_cli.core.types import Adapted, DataBundle, Source, Start, Task
from bigmodel_cli.data.batches import Batches
from bigmodel_cli.engine.build.data import (
    changed_data_note,
    conflicting_labels_note,
    load_data,
    shared_samples_note,
    train_and_val,
    unused_split_note,
)
from bigmodel_cli.engine.build.load import TrainedModel, load_trained, recipe_and_spec
from bigmodel_cli.engine.build.model import head_name
from bigmodel_cli.engine.build.optimizer import build_optimizer
from bigmodel_cli.engine.build.preprocessing import unused_layout_note
from bigmodel_cli.engine.device.autotune import autotune
from bigmodel_cli.engine.device.device_cache import cache_on_device
from bigmodel_cli.engine.device.placement import Placement, choose_placement
from bigmodel_cli.engine.device.process import configure_process
from bigmodel_cli.engine.distributed.process_group import SINGLE_PROCESS, Group
from bigmodel_cli.engine.distributed.strategy import choose_strategy
from bigmodel_cli.engine.training.cached_features import can_cache_features
from bigmodel_cli.engine.training.class_weighted_loss import class_labels, imbalance_notes, with_class_weights
from bigmodel_cli.engine.training.lone_samples import check_lone_samples
from bigmodel_cli.engine.training.metadata import build_meta
from bigmodel_cli.engine.training.new_layers import adapt
from bigmodel_cli.engine.training.private_training import (
    check_private,
    gradient_step,
    is_private,
    private_batches,
    private_layers,
)
from bigmodel_cli.engine.training.restore import restore, with_carving_of
from bigmodel_cli.engine.training.run import Run, environment, rank_seed
from bigmodel_cli.engine.training.sharded_build import (
    batches_for,
    broadcast_placement,
    build_ema,
    builds_on_meta,
    on_device,
    shards_parameters,
    with_tensor_parallel_size,
)
from bigmodel_cli.engine.training.starting_point import check_task, task_and_model, trained_start
from bigmodel_cli.engine.training.timer import Timer
from bigmodel_cli.models.layers.meta_init import parameters_on_meta


@dataclass(frozen=True)
class Built:
    """A run before its preparation phase; see ``assemble.prepare``."""

    draft: Run
    """The run with its state (from the checkpoint if resumed). Its batches still hold raw samples."""
    caches_features: bool
    """Whether the frozen backbone runs once and the head trains on cached features."""


@dataclass(frozen=True)
class _Loaded:
    """The data, and the trained model to start from, if any."""

    trained: TrainedModel | None
    bundle: DataBundle
    train: Source
    val: Source
    new: tuple[str, ...] = ()
    """The parameters below the head that the published weights of the start lack."""


@dataclass(frozen=True)
class _Components:
    """The components of a run, before they are distributed over processes."""

    task: Task
    model: nn.Module
    adapted: Adapted
    bundle: DataBundle
    batches: Batches
    val: Source
    steps: int
    caches_features: bool
    new: tuple[str, ...]
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
    """Build everything that `recipe` names, on its device; every process of `group` builds its own part of the run.

    Args:
        recipe: what to build.
        resumed: the checkpoint to continue from. Its preprocessing is kept. The checkpoint that the run
            was fine-tuned from is no longer needed.
        recorded: the environment of an earlier run to reproduce. Its autotuned settings are reused.
        measure: False skips autotuning and uses the default placement.
        group: the processes of the job.
        notes: lines to show before the run's own notes.

    Raises:
        BigmodelError: the data, checkpoint or device is missing or incompatible.
    """
    recipe = with_carving_of(recipe, resumed)
    group = with_tensor_parallel_size(group, recipe)
    placement = choose_placement(recipe.placement, resumed["meta"]["env"] if resumed else recorded, group.ranks)
    configure_process(placement)
    components = _build_components(recipe, resumed, placement, group)
    solves = components.adapted.solve is not None
    if group.world > 1 and solves:
        raise InputError(f"method {recipe.start.method} runs in one process", hint="without --nproc")
    measure = measure and not is_private(recipe)  # whose steps are others than those that would be timed
    if measure and resumed is None and recorded is None and not solves and not components.caches_features:
        if group.is_main and not shards_parameters(recipe, group):  # the other ranks wait and use its result
            placement = _autotune(recipe, placement, components)
        placement = broadcast_placement(recipe, placement, components.model, group)
    run = _build_run(
        recipe,
        components,
        placement,
        group,
        [*notes, *components.notes, *_environment_notes(placement, group, resumed)],
    )
    if not (solves or components.caches_features):
        check_lone_samples(run)
    if group.data_parallel_rank:
        torch.manual_seed(rank_seed(recipe.train.seed, group.data_parallel_rank))
    if resumed is not None:
        restore(run, resumed)
    return Built(run, components.caches_features)


def _build_components(
    recipe: Recipe, resumed: Mapping[str, Any] | None, placement: Placement, group: Group
) -> _Components:
    loaded = _load_data(recipe, resumed)
    task, model, adapted, notes = _build_network(recipe, loaded, resumed, placement, group)
    bundle, balance = loaded.bundle, recipe.train.balance
    task = task.for_data(bundle.spec)
    weighs = balance == "loss" and isinstance(task, Balances)
    labels = class_labels(loaded.train, balance) if balance != "none" and not weighs else None
    imbalance = imbalance_notes(loaded.train, bundle.spec.classes, balance)
    train, val = cache_on_device(loaded.train, placement), cache_on_device(loaded.val, placement)
    batches = private_batches(recipe, batches_for(recipe, train, labels if balance == "sampling" else None, group))
    task = task.balanced(loaded.train) if weighs and isinstance(task, Balances) else task
    task = _training_task(task, adapted, labels if balance == "loss" else None)
    check_private(recipe, task, bundle, loaded.trained.meta if loaded.trained else None)
    unused = unused_split_note(bundle, recipe.data)
    shared = shared_samples_note(bundle, loaded.train, loaded.val)
    splits = {"train": loaded.train, "val": loaded.val}
    conflicts = [conflicting_labels_note(source, name, bundle.spec.classes) for name, source in splits.items()]
    caches, reason = can_cache_features(recipe, task, model, adapted, len(train) + len(val))
    return _Components(
        task=task,
        model=model,
        adapted=adapted,
        bundle=bundle,
        batches=batches,
        val=val,
        steps=min(recipe.train.epochs * batches.steps_per_epoch, recipe.train.max_steps or sys.maxsize),
        caches_features=caches and group.world == 1,
        new=loaded.new,
        notes=[
            *bundle.notes,
            *_changed_data(loaded, recipe),
            *notes,
            *imbalance,
            *filter(None, [reason, unused, shared, *conflicts, unused_layout_note(recipe, task)]),
        ],
    )


def _build_run(recipe: Recipe, components: _Components, placement: Placement, group: Group, notes: list[str]) -> Run:
    """Distribute the components over the processes of `group`, and add an optimizer and a schedule."""
    model, adapted = components.model, components.adapted
    parallel = choose_strategy(group, recipe, placement, model, unused=bool(adapted.stages))
    ema = build_ema(recipe, model, parallel)  # before the model is wrapped
    forward = placement.compiled(parallel.wrap(model))
    optimizer = build_optimizer(recipe, model, adapted.rates)
    batches, steps = components.batches, components.steps
    gradients, lines = gradient_step(recipe, components.task, model, adapted, batches, steps, placement, group)
    return Run(
        recipe=recipe,
        task=components.task,
        model=model,
        forward=forward,
        ema=ema,
        adapted=adapted,
        optimizer=optimizer,
        lr_factor=schedules.get(recipe.schedule.name)(steps, **recipe.schedule.options),
        base_lrs=[
            g["lr"] * (group.data_parallel_size if recipe.parallel.scale_lr else 1) for g in optimizer.param_groups
        ],
        batches=batches,
        val=components.val,
        total_steps=0 if adapted.solve or is_solved(model) else steps,
        placement=placement,
        timer=Timer(placement.synchronize if placement.lag else None),
        meta=build_meta(recipe, components.task, components.bundle, components.new),
        notes=[*notes, *lines],
        splits=frozenset(components.bundle.load),
        parallel=parallel,
        gradients=gradients,
    )


def _load_data(recipe: Recipe, resumed: Mapping[str, Any] | None) -> _Loaded:
    check_task(recipe)
    trained = None if resumed else trained_start(recipe)
    like = recipe_and_spec(resumed, "--resume")[1] if resumed else trained.task.spec if trained else None
    bundle = load_data(recipe.data, like, recipe.task, fits=resumed is None)
    new = resumed["meta"].get("new", ()) if resumed else trained.new if trained else ()
    return _Loaded(trained, bundle, *train_and_val(bundle, recipe.data), tuple(new))


def _build_network(
    recipe: Recipe, loaded: _Loaded, resumed: Mapping[str, Any] | None, placement: Placement, group: Group
) -> tuple[Task, nn.Module, Adapted, list[str]]:
    """Return the task, the model on its device, the fine-tuning method's result and notes for the user."""
    torch.manual_seed(recipe.train.seed)
    with parameters_on_meta(builds_on_meta(recipe, group, resumed is not None)):
        task, model, notes = task_and_model(recipe, loaded.bundle, loaded.train, resumed, loaded.trained)
    model = on_device(recipe, model, placement, group)
    start = Start(model, head_name(recipe), _load_path, task, loaded.bundle.spec)
    adapted, lines = adapt(recipe, start, loaded.new)
    adapted, more = private_layers(recipe, model, adapted)
    return task, model, adapted, [*notes, *lines, *more]


def _changed_data(loaded: _Loaded, recipe: Recipe) -> list[str]:
    """A note where a run continues from a model of the same data, which has changed."""
    saved = loaded.trained.meta.get("data") if loaded.trained else None
    note = changed_data_note(loaded.bundle, recipe.data, saved) if saved else None
    return [note] if note else []


def _load_path(path: str) -> TrainedModel:
    return load_trained(Path(path))


def _training_task(task: Task, adapted: Adapted, labels: Tensor | None) -> Task:
    """Add class weights from `labels` (N,) and the fine-tuning method's objective to the training loss of `task`."""
    task = task if labels is None else with_class_weights(task, labels)
    return adapted.objective(task) if adapted.objective else task


def _environment_notes(placement: Placement, group: Group, resumed: Mapping[str, Any] | None) -> list[str]:
    """One line for each environment setting that bit-exact resume depends on and that has changed."""
    if resumed is None:
        return []
    before = {"world": 1, **resumed["meta"]["env"]}
    now = environment(placement, group.world)
    lines = (f"{k} was {before.get(k)}, is now {v}" for k, v in now.items() if before.get(k) != v)
    return [f"resumed in a different environment: {line}" for line in lines]


def _autotune(recipe: Recipe, placement: Placement, components: _Components) -> Placement:
    """Autotune the placement: choose the fastest one by timing real steps of this run."""
    for module in components.adapted.frozen.modules:
        module.eval()
    batches = components.batches
    steps = batches.order(0).tensor_split(batches.steps_per_epoch)
    first = steps[0].tensor_split(batches.shards)[0].tensor_split(recipe.train.accumulate)[0]
    section = recipe.placement
    if section.compile == "auto" and isinstance(batches.source, VariableLengthSource):
        # Batch shapes vary with text length, and each new shape would trigger a recompilation.
        section = section.model_copy(update={"compile": False})
    return autotune(
        section,
        placement,
        components.model,
        components.task,
        lambda: batches.indexed_source.gather(first),
        components.steps * recipe.train.accumulate,
    )
