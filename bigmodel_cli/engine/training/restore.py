"""Resume a run from a checkpoint, after checking that the checkpoint fits the run."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe, Section
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.build.optimizer import optimizer_over
from bigmodel_cli.engine.training.run import REFERENCES, Progress, Run, rank_seed

MAY_CHANGE = {
    ("data", "dir"),
    ("train", "epochs"),
    ("train", "max_steps"),
    ("train", "patience"),
    ("train", "eval_epochs"),
    ("train", "eval_batch_size"),
    ("train", "save_steps"),
    ("train", "shard_above"),
    ("train", "profile"),
}
"""Recipe fields that may change on resume: the length of the run, its data folder, when it saves and evaluates."""
LARGEST = 2**53  # largest integer allowed in the progress, since random seeds are derived from it


def with_carving_of(recipe: Recipe, resumed: Mapping[str, Any] | None) -> Recipe:
    """`recipe`, with val split off train as in the run that is resumed."""
    how = resumed["meta"]["recipe"]["data"].get("carve") if resumed is not None else None
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"carve": how})}) if how else recipe


def restore(run: Run, state: Mapping[str, Any]) -> None:
    """Restore `run` from the checkpoint `state`. In the same environment it continues bit for bit.

    Raises:
        InputError: the checkpoint was made with a different recipe, or its state does not fit this run.
    """
    check_recipe(run.recipe, state["meta"]["recipe"])
    if (difference := first_difference(run, state)) is not None:
        hint = "restore it from a copy, or start a new run with --out"
        raise InputError(f"--resume: the checkpoint's state does not fit this run: {difference}", hint=hint)
    run.gradients.resume(state["meta"])
    for split, outputs in state.get(REFERENCES, {}).items():
        run.reference_outputs[split] = {name: tensor.float() for name, tensor in outputs.items()}
    run.model.load_state_dict(run.parallel.shard_state(state["model"], run.model.state_dict()))
    if run.ema is not None:
        ema = dict(state["model_ema"])
        run.ema.n_averaged.copy_(ema.pop("n_averaged"))
        run.ema.module.load_state_dict(run.parallel.shard_state(ema, run.ema.module.state_dict()))
    # The settings of the parameter groups come from this run: the same recipe and step give the same values.
    saved = _with_param_groups(run.optimizer.state_dict(), state["optimizer"])
    run.optimizer.load_state_dict(dict(run.parallel.shard_optimizer_state(saved, run.optimizer)))
    vars(run.progress).update(state["progress"])
    _restore_random_state(run, state["rng"])


def check_recipe(ours: Recipe, saved: Mapping[str, Any]) -> None:
    """Check that the recipe of a checkpoint (`saved`, as plain values) matches the recipe of the resumed run.

    Raises:
        InputError: a field that affects the result differs.
    """
    for section, values in ours.to_dict().items():
        if section in ("placement", "parallel"):
            continue
        stated = saved.get(section, {})
        # Compare names first: if the model differs, so do its options, and the name is the clearer message.
        for key in sorted(values.keys() | stated.keys(), key=lambda k: (k != "name", k)):
            before, now = stated[key] if key in stated else _default(saved, section, key), values.get(key)
            if before != now and (section, key) not in MAY_CHANGE:
                problem = f"--resume: {section}.{key} is {now!r}, but the checkpoint was made with {before!r}"
                raise InputError(problem, hint=f"use {before!r}, or start a new run with --out")


def _default(saved: Mapping[str, Any], section: str, key: str) -> Any:
    """The value of a field or a component's option that is newer than the recipe `saved`: its default."""
    typed = Recipe.model_fields[section].get_default()
    if isinstance(typed, Section) and key in type(typed).model_fields:
        return getattr(typed, key)
    return resolve([Layer("the checkpoint", saved)]).recipe.to_dict()[section].get(key)


def first_difference(run: Run, state: Mapping[str, Any]) -> str | None:
    """Describe the first part of the checkpoint `state` that does not fit `run`; None if all of it fits."""
    differences = itertools.chain(
        _in_progress(state["progress"]),
        _in_tensors(run.model.state_dict(), state["model"], "model"),
        _in_ema(run, state["model_ema"]),
        _in_optimizer(run, state["optimizer"]),
        _in_random_state(run, state["rng"]),
        _in_reference_outputs(run, state.get(REFERENCES)),
    )
    return next(differences, None)


def _in_progress(saved: Mapping[str, Any]) -> Iterator[str]:
    for key, start in asdict(Progress()).items():
        if key not in saved:
            yield f"progress.{key} is missing"
            continue
        value = saved[key]
        if type(start) is int:
            valid, expected = type(value) is int and 0 <= value < LARGEST, "an integer of at least 0"
        else:
            valid, expected = type(value) is float or (start is None and value is None), "a number"
        if not valid:
            yield f"progress.{key} is {_short(value)}, expected {expected}"
    yield from (f"progress.{_short(key)} is unknown" for key in saved.keys() - asdict(Progress()).keys())


def _in_ema(run: Run, saved: Mapping[str, Any] | None) -> Iterator[str]:
    if run.ema is None or saved is None:
        if run.ema is not None or saved is not None:
            expected = "none" if run.ema is None else "an average of the weights"
            yield f"model_ema holds {'none' if saved is None else 'an average'}, expected {expected}"
        return
    ours = {**run.ema.module.state_dict(), "n_averaged": run.ema.n_averaged}
    yield from _in_tensors(ours, saved, "model_ema")


def _in_tensors(ours: Mapping[str, Tensor], saved: Mapping[str, Any], name: str) -> Iterator[str]:
    yield from _in_keys(ours, saved, name)
    for key in ours:
        yield from _in_value(ours[key], saved[key], f"{name}.{key}")


def _in_keys(ours: Mapping[Any, Any], saved: Mapping[Any, Any], name: str) -> Iterator[str]:
    yield from (f"{name}.{key} is missing" for key in ours if key not in saved)
    yield from (f"{name}.{_short(key)} is unknown" for key in saved if key not in ours)


def _in_value(ours: Any, saved: Any, name: str) -> Iterator[str]:
    """Compare types: shape and dtype of tensors, type of numbers, keys of dictionaries."""
    if isinstance(ours, Tensor):
        if not isinstance(saved, Tensor) or saved.shape != ours.shape:
            yield f"{name} is {_describe(saved)}, expected {_describe(ours)}"
        elif saved.is_floating_point() != ours.is_floating_point():
            yield f"{name} is {saved.dtype}, expected {ours.dtype}"
    elif type(ours) is not type(saved):
        yield f"{name} is {_describe(saved)}, expected {_describe(ours)}"
    elif isinstance(ours, dict):
        yield from _in_keys(ours, saved, name)
        for key in ours:
            yield from _in_value(ours[key], saved[key], f"{name}.{key}")


def _in_optimizer(run: Run, saved: Mapping[str, Any]) -> Iterator[str]:
    """Compare saved optimizer state with the state after a step. Parameters without a gradient so far have none."""
    yield from _in_optimizer_state(_after_a_step(run), saved, "optimizer")


def _in_optimizer_state(ours: Mapping[str, Any], saved: Any, name: str) -> Iterator[str]:
    if type(saved) is not dict or ours.keys() != saved.keys():
        yield f"{name} is {_keys(saved)}, expected {_keys(ours)}"
    elif "param_groups" not in ours:  # several optimizers used as one
        for key in ours:
            yield from _in_optimizer_state(ours[key], saved[key], f"{name}.{key}")
    elif _parameters(saved["param_groups"]) != _parameters(ours["param_groups"]):
        yield f"{name}.param_groups do not match this run"
    elif type(saved["state"]) is not dict:
        yield f"{name}.state is {_describe(saved['state'])}, expected dict"
    else:
        for key, values in saved["state"].items():
            if key not in ours["state"]:
                yield f"{name}.state.{_short(key)} does not belong to a parameter"
            else:
                yield from _in_value(ours["state"][key], values, f"{name}.state.{key}")


def _parameters(groups: Any) -> list[Any]:
    """Return the parameter indices of each group of a saved optimizer; None for an invalid group."""
    if type(groups) is not list:
        return []
    return [group.get("params") if isinstance(group, dict) else None for group in groups]


def _after_a_step(run: Run) -> dict[str, Any]:
    """Return the state that the run's optimizer has after one step, as keys and shapes on the meta device."""
    meta = [
        (name, nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), p.requires_grad))
        for name, p in run.model.named_parameters()
    ]
    optimizer = optimizer_over(run.recipe, meta, run.adapted.rates)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    # Avoid compiling the optimizer step for this. If the compiler is not loaded, nothing can be compiled.
    compiler_loaded = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if compiler_loaded else contextlib.nullcontext():
        optimizer.step()
    return optimizer.state_dict()


def _with_param_groups(ours: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    if "param_groups" in ours:
        return {**saved, "param_groups": ours["param_groups"]}
    return {key: _with_param_groups(ours[key], saved[key]) for key in ours}


def _in_random_state(run: Run, saved: Mapping[str, Any]) -> Iterator[str]:
    ranks = saved.get("ranks", [saved])
    if not isinstance(ranks, list) or not ranks or not all(isinstance(state, dict) for state in ranks):
        yield "rng.ranks is not a list of random states"
        return
    on_cuda = run.placement.device.type == "cuda"
    for state in ranks:
        if "cpu" not in state:
            yield "rng.cpu is missing"
        elif not _is_random_state(state["cpu"], "cpu"):
            yield "rng.cpu is not a random generator state"
        elif on_cuda and "cuda" in state and not _is_random_state(state["cuda"], "cuda"):
            yield "rng.cuda is not a random generator state"


def _is_random_state(value: Any, device: str) -> bool:
    if not isinstance(value, Tensor) or value.dtype != torch.uint8:
        return False
    try:
        torch.Generator(device).set_state(value)
    except RuntimeError:  # an invalid size or counter, which only torch can detect
        return False
    return True


def _in_reference_outputs(run: Run, saved: Any) -> Iterator[str]:
    if run.adapted.once is None:
        return
    name = f"{REFERENCES}, the reference outputs of the initial model,"
    if not isinstance(saved, dict):
        yield f"{name} {'are missing' if saved is None else 'are ' + _describe(saved)}"
        return
    for split, source in (("train", run.batches.source), ("val", run.val)):
        outputs = saved.get(split)
        if not isinstance(outputs, dict) or not outputs:
            yield f"{name} are missing for {split}"
        elif not all(isinstance(v, Tensor) and v.dim() and len(v) == len(source) for v in outputs.values()):
            yield f"{name} do not match the data: expected one for each of {len(source)} {split} samples"
        elif outputs.keys() != (saved.get("train") or {}).keys():
            yield f"{name} have different keys for train and val"


def _restore_random_state(run: Run, rng: Mapping[str, Any]) -> None:
    """Restore each rank's state. If the number of processes changed, only rank 0's; the others are reseeded."""
    group = run.parallel.group
    ranks = rng.get("ranks", [rng])
    if len(ranks) != group.world and not group.is_main:
        torch.manual_seed(rank_seed(run.recipe.train.seed + run.progress.step, group.rank))
        return
    state = ranks[group.rank]
    torch.set_rng_state(state["cpu"])
    if run.placement.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], run.placement.device)


def _describe(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _keys(value: Any) -> str:
    return "with " + ", ".join(_short(key) for key in value) if isinstance(value, Mapping) else _describe(value)


def _short(value: Any) -> str:
    text = str(value) if not isinstance(value, Tensor) else _describe(value)
    return text if len(text) <= 40 else text[:39] + "…"
