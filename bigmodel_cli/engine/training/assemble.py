"""Recipe -> Run: the only place that builds everything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import data, methods, models, schedules
from bigmodel_cli.core.types import Adapted, DataBundle, Frozen, Source, Start, Task
from bigmodel_cli.data.batches import Batches
from bigmodel_cli.engine.build.compatibility import first_difference
from bigmodel_cli.engine.build.data import load_data, train_and_val
from bigmodel_cli.engine.build.foreign_weights import is_foreign, load_foreign_weights
from bigmodel_cli.engine.build.load import TrainedModel, load_trained, recipe_and_spec
from bigmodel_cli.engine.build.locate import check_pin, checkpoint_file
from bigmodel_cli.engine.build.model import build_model, build_task, head_name, initialise_from_data
from bigmodel_cli.engine.build.optimizer import build_optimizer
from bigmodel_cli.engine.build.published_weights import load_pretrained
from bigmodel_cli.engine.build.transfer import transfer
from bigmodel_cli.engine.device.autotune import autotune
from bigmodel_cli.engine.device.device_cache import cache_on_device
from bigmodel_cli.engine.device.placement import Placement, choose_placement
from bigmodel_cli.engine.device.process import configure_process
from bigmodel_cli.engine.distributed.process_group import SINGLE_PROCESS, Group
from bigmodel_cli.engine.distributed.strategy import choose_strategy
from bigmodel_cli.engine.training.cached_features import can_cache_features
from bigmodel_cli.engine.training.class_weighted_loss import labels_of, told, weighted
from bigmodel_cli.engine.training.provenance import provenance
from bigmodel_cli.engine.training.run import Run, rank_seed
from bigmodel_cli.engine.training.sharded_build import (
    agreed,
    batches_for,
    build_ema,
    builds_on_meta,
    on_device,
    shards_parameters,
    with_width,
)
from bigmodel_cli.engine.training.timer import Timer
from bigmodel_cli.models.layers.meta_init import parameters_on_meta


def assemble(
    recipe: Recipe,
    resumed: Mapping[str, Any] | None = None,
    recorded: Mapping[str, Any] | None = None,
    *,
    measure: bool = True,
    group: Group = SINGLE_PROCESS,
) -> Run:
    """Build everything that `recipe` names, on its device, ready for ``fit``.

    `resumed` is the checkpoint to continue from: its preprocessing is kept, and the
    checkpoint it once started from is not needed any more. `recorded` is the environment of
    a run that is done again: what was measured for it then is not measured anew.
    Without `measure` the placement is the default one: for a look at a run, not for the run.
    Every process of `group` calls this, for its share of the run.

    Raises:
        BigmodelError: data, checkpoint or device is not there or does not fit.
    """
    group = with_width(group, recipe)
    placement = choose_placement(recipe.placement, resumed["meta"]["env"] if resumed else recorded, group.ranks)
    configure_process(placement)
    _check_task(recipe)
    trained = None if resumed else _start(recipe)
    like = recipe_and_spec(resumed, "--resume")[1] if resumed else trained.task.spec if trained else None
    bundle = load_data(recipe.data, like)
    train, val = train_and_val(bundle, recipe.data)
    torch.manual_seed(recipe.train.seed)
    with parameters_on_meta(builds_on_meta(recipe, group, resumed is not None)):
        task, model, notes = _task_and_model(recipe, bundle, train, resumed, trained)
    model = on_device(recipe, model, placement, group)
    start = Start(model, head_name(recipe), lambda path: load_trained(Path(path)))
    adapted: Adapted = methods.get(recipe.start.method)(start, **recipe.start.options)
    how = recipe.train.balance
    labels = labels_of(train, how) if how != "none" else None
    notes += told(train, getattr(bundle.spec, "classes", ()), how)
    train, val = cache_on_device(train, placement), cache_on_device(val, placement)
    batches = batches_for(recipe, train, labels if how == "sampling" else None, group)
    total = recipe.train.epochs * batches.steps_per_epoch
    total = min(total, recipe.train.max_steps or total)
    task = task.for_data(bundle.spec)
    task = weighted(task, labels) if labels is not None and how == "loss" else task
    task = adapted.objective(task) if adapted.objective else task
    keeps, why_not = can_cache_features(recipe, task, model, adapted, len(train) + len(val))
    if group.world > 1 and adapted.solve:
        raise InputError(f"method {recipe.start.method} runs in one process", hint="without --nproc")
    keeps = keeps and group.world == 1
    if measure and resumed is None and recorded is None and adapted.solve is None and not keeps:
        if group.is_main and not shards_parameters(
            recipe, group
        ):  # alone, the others wait: what it finds holds for all
            placement = _measured(recipe, placement, model, adapted.frozen, task, batches, total)
        placement = agreed(recipe, placement, model, group)
    parallel = choose_strategy(group, recipe, placement, model, unused=bool(adapted.stages))
    ema = build_ema(recipe, model, parallel)  # before it is wrapped
    forward = placement.compiled(parallel.wrap(model))
    optimizer = build_optimizer(recipe, model, adapted.rates)
    run = Run(
        recipe=recipe,
        task=task,
        model=model,
        forward=forward,
        ema=ema,
        adapted=adapted,
        optimizer=optimizer,
        factor=schedules.get(recipe.schedule.name)(total, **recipe.schedule.options),
        base_lrs=[
            g["lr"] * (group.data_parallel_size if recipe.parallel.scale_lr else 1) for g in optimizer.param_groups
        ],
        batches=batches,
        val=val,
        total_steps=total,
        placement=placement,
        timer=Timer(placement.synchronize if placement.lag else None),
        meta=_meta(recipe, task, bundle),
        notes=[*bundle.notes, *notes, *filter(None, [why_not])],
        splits=frozenset(bundle.load),
        caches_features=keeps,
        parallel=parallel,
    )
    if group.data_parallel_rank:
        torch.manual_seed(rank_seed(recipe.train.seed, group.data_parallel_rank))
    if resumed is not None:
        _restore(run, resumed)
    return run


def _restore(run: Run, state: Mapping[str, Any]) -> None:
    try:
        differences = run.restore(state)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        what = f"--resume: the checkpoint's state does not fit this run ({type(error).__name__}: {error})"
        raise InputError(what, hint="restore it from a copy, or start a new run with --out") from error
    run.notes += [f"resumed in another environment: {line}" for line in differences]


def _check_task(recipe: Recipe) -> None:
    """Hold the data and the method to what the model does, where they are made for one task.

    Raises:
        InputError: it is for another.
    """
    does = models.get(recipe.model.name).meta["task"]
    method = recipe.start.method
    for name, meta in (
        (f"data {recipe.data.name}", data.get(recipe.data.name).meta),
        (method, methods.get(method).meta),
    ):
        wanted = meta.get("task", does)
        if does != wanted:
            does, wanted = does.replace("_", " "), wanted.replace("_", " ")
            what, expected = f"{recipe.model.name} is for {does}", f"{name} is for {wanted}"
            hint = "bigmodel models and bigmodel data list what there is"
            raise InputError(what, expected, hint)


def _start(recipe: Recipe) -> TrainedModel | None:
    """The trained model that the recipe starts from; None for random weights, and for foreign ones."""
    if not recipe.start.trained:
        if recipe.start.sha256 is not None:
            raise InputError("start.sha256 and no start", "expected start.checkpoint or start.pretrained beside it")
        return None
    if recipe.start.checkpoint is None:
        return load_pretrained(recipe)
    path = Path(recipe.start.checkpoint)
    check_pin(checkpoint_file(path), recipe.start.sha256)
    return None if is_foreign(path) else load_trained(path)


def _task_and_model(
    recipe: Recipe, bundle: DataBundle, train: Source, resumed: Mapping[str, Any] | None, trained: TrainedModel | None
) -> tuple[Task, nn.Module, list[str]]:
    if resumed is not None:
        _check_same_data(resumed["meta"]["data"], bundle)
        _, spec = recipe_and_spec(resumed, "--resume")
        return build_task(recipe, spec), build_model(recipe, spec), []
    if not recipe.start.trained:
        task = build_task(recipe, bundle.spec).fit_spec(train)
        model = build_model(recipe, task.spec)
        initialise_from_data(model, task, train)
        return task, model, []
    if trained is None:
        task = build_task(recipe, bundle.spec).fit_spec(train)
        model = build_model(recipe, task.spec)
        path = Path(str(recipe.start.checkpoint))
        return task, model, load_foreign_weights(model, path, models.get(recipe.model.name).meta)
    spec, notes = trained.task.adopt(trained.task.spec, bundle.spec)
    model = build_model(recipe, spec)
    return build_task(recipe, spec), model, notes + transfer(model, trained, spec)


def _check_same_data(then: Mapping[str, Any], bundle: DataBundle) -> None:
    """Hold the data to what the run was trained on so far: the names and order of classes, shapes, every byte.

    Raises:
        InputError: it has changed.
    """
    hint = "put the data back, or start a new run with --out"
    was: Any = then.get("spec")
    now = bundle.spec.to_dict() if isinstance(was, Mapping) else {}
    for key, value in now.items():
        if was.get(key) != value:
            difference = first_difference(key, was.get(key), value, "checkpoint", "data")
            raise InputError(f"--resume: {difference}", hint=hint)
    if then.get("fingerprint") != bundle.fingerprint:
        prints = [str(p)[:12] for p in (then.get("fingerprint"), bundle.fingerprint)]
        what = f"--resume: the data has changed: fingerprint {prints[0]} in the checkpoint"
        raise InputError(what, f"{prints[1]} in the data", hint)


def _measured(
    recipe: Recipe, placement: Placement, model: nn.Module, frozen: Frozen, task: Task, batches: Batches, steps: int
) -> Placement:
    """The placement that real steps of this run found fastest."""
    for module in frozen.modules:
        module.eval()
    parts = batches.order(0).tensor_split(batches.steps_per_epoch)
    first = parts[0].tensor_split(batches.shards)[0].tensor_split(recipe.train.accumulate)[0]
    values = recipe.to_dict()
    about = [values["model"], values["augment"], values["loss"], recipe.start.method, recipe.start.options]
    section = recipe.placement
    if section.compile == "auto" and getattr(batches.source, "lengths", None) is not None:
        # Batches are as long as their texts: what is compiled for one shape is compiled again for the next.
        section = section.model_copy(update={"compile": False})
    return autotune(
        section,
        placement,
        model,
        task,
        lambda: batches.drawn.gather(first),
        steps * recipe.train.accumulate,
        about,
    )


def _meta(recipe: Recipe, task: Task, bundle: DataBundle) -> dict[str, Any]:
    values = recipe.to_dict()
    spec = task.spec
    return {
        "arch": recipe.model.name,
        "arch_args": recipe.model.options,
        "task": task.name,
        "classes": list(getattr(spec, "classes", ())),
        "input": {"kind": spec.kind, **spec.to_dict()},
        "data": {**values["data"], "fingerprint": bundle.fingerprint, "spec": bundle.spec.to_dict()},
        "recipe": values,
        "origin": provenance(),
    }
