"""A run goes on from a checkpoint, once that is held against what the run needs of it."""

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
from bigmodel_cli.core.recipe import Recipe
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
"""What a resumed run may do otherwise: run longer, look elsewhere for its data, save and evaluate at other times."""
LARGEST = 2**53  # of a whole number in the progress: random seeds are made of these


def restore(run: Run, state: Mapping[str, Any]) -> None:
    """Continue from the checkpoint `state`, bit by bit in the same environment.

    Raises:
        InputError: it is of another recipe, or its state is not one of this run.
    """
    check_recipe(run.recipe, state["meta"]["recipe"])
    if (difference := first_difference(run, state)) is not None:
        hint = "restore it from a copy, or start a new run with --out"
        raise InputError(f"--resume: the checkpoint's state does not fit this run: {difference}", hint=hint)
    for split, outputs in state.get(REFERENCES, {}).items():
        run.reference_outputs[split] = {name: tensor.float() for name, tensor in outputs.items()}
    run.model.load_state_dict(run.parallel.shard_state(state["model"], run.model.state_dict()))
    if run.ema is not None:
        ema = dict(state["model_ema"])
        run.ema.n_averaged.copy_(ema.pop("n_averaged"))
        run.ema.module.load_state_dict(run.parallel.shard_state(ema, run.ema.module.state_dict()))
    # The groups' settings are this run's own: they follow from the recipe, which is the same, and the step.
    saved = _with_groups_of(run.optimizer.state_dict(), state["optimizer"])
    run.optimizer.load_state_dict(dict(run.parallel.shard_optimizer_state(saved, run.optimizer)))
    vars(run.progress).update(state["progress"])
    _restore_random_state(run, state["rng"])


def check_recipe(ours: Recipe, saved: Mapping[str, Any]) -> None:
    """Hold the recipe of a checkpoint, `saved` as plain values, to that of the run which goes on from it.

    Raises:
        InputError: a field that decides about the outcome differs.
    """
    for section, values in ours.to_dict().items():
        if section in ("placement", "parallel"):
            continue
        typed = Recipe.model_fields[section].get_default()
        # The name first: another model has other options, which would say less.
        for key in sorted(values.keys() | saved.get(section, {}).keys(), key=lambda k: (k != "name", k)):
            # What the recipe did not know of when the checkpoint was made was as it is by default.
            old, new = saved.get(section, {}).get(key, getattr(typed, key, None)), values.get(key)
            if old != new and (section, key) not in MAY_CHANGE:
                what = f"--resume: {section}.{key} is {new!r}, but the checkpoint was made with {old!r}"
                raise InputError(what, hint=f"give {old!r} again, or start a new run with --out")


def first_difference(run: Run, state: Mapping[str, Any]) -> str | None:
    """The first thing in the checkpoint `state` that `run` cannot go on from; None where all of it fits."""
    found = itertools.chain(
        _in_progress(state["progress"]),
        _in_tensors(run.model.state_dict(), state["model"], "model"),
        _in_ema(run, state["model_ema"]),
        _in_optimizer(run, state["optimizer"]),
        _in_random_state(run, state["rng"]),
        _in_reference_outputs(run, state.get(REFERENCES)),
    )
    return next(found, None)


def _in_progress(saved: Mapping[str, Any]) -> Iterator[str]:
    for key, start in asdict(Progress()).items():
        if key not in saved:
            yield f"progress.{key} is missing"
            continue
        value = saved[key]
        if type(start) is int:
            right, expected = type(value) is int and 0 <= value < LARGEST, "a whole number from 0"
        else:
            right, expected = type(value) is float or (start is None and value is None), "a number"
        if not right:
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
    """Differences in kind: of tensors in shape and type, of numbers in type, of dictionaries in their keys."""
    if isinstance(ours, Tensor):
        if not isinstance(saved, Tensor) or saved.shape != ours.shape:
            yield f"{name} is {_kind(saved)}, expected {_kind(ours)}"
        elif saved.is_floating_point() != ours.is_floating_point():
            yield f"{name} is {saved.dtype}, expected {ours.dtype}"
    elif type(ours) is not type(saved):
        yield f"{name} is {_kind(saved)}, expected {_kind(ours)}"
    elif isinstance(ours, dict):
        yield from _in_keys(ours, saved, name)
        for key in ours:
            yield from _in_value(ours[key], saved[key], f"{name}.{key}")


def _in_optimizer(run: Run, saved: Mapping[str, Any]) -> Iterator[str]:
    """Parameters that had no gradient yet have no state; one that is there is what a step leaves."""
    yield from _in_parts(_after_a_step(run), saved, "optimizer")


def _in_parts(ours: Mapping[str, Any], saved: Any, name: str) -> Iterator[str]:
    if type(saved) is not dict or ours.keys() != saved.keys():
        yield f"{name} is {_keys(saved)}, expected {_keys(ours)}"
    elif "param_groups" not in ours:  # several optimizers used as one
        for key in ours:
            yield from _in_parts(ours[key], saved[key], f"{name}.{key}")
    elif _parameters(saved["param_groups"]) != _parameters(ours["param_groups"]):
        yield f"{name}.param_groups are not those of this run"
    elif type(saved["state"]) is not dict:
        yield f"{name}.state is {_kind(saved['state'])}, expected dict"
    else:
        for key, values in saved["state"].items():
            if key not in ours["state"]:
                yield f"{name}.state.{_short(key)} is of no parameter"
            else:
                yield from _in_value(ours["state"][key], values, f"{name}.state.{key}")


def _parameters(groups: Any) -> list[Any]:
    """The numbers of the parameters in each group of a saved optimizer; None for what is no group."""
    if type(groups) is not list:
        return []
    return [group.get("params") if isinstance(group, dict) else None for group in groups]


def _after_a_step(run: Run) -> dict[str, Any]:
    """What the run's optimizer keeps once it has taken a step: the keys and shapes, on the meta device."""
    meta = [
        (name, nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), p.requires_grad))
        for name, p in run.model.named_parameters()
    ]
    optimizer = optimizer_over(run.recipe, meta, run.adapted.rates)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    # An optimizer that is compiled need not be for this; where the compiler is not loaded none is.
    loaded = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if loaded else contextlib.nullcontext():
        optimizer.step()
    return optimizer.state_dict()


def _with_groups_of(ours: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    if "param_groups" in ours:
        return {**saved, "param_groups": ours["param_groups"]}
    return {key: _with_groups_of(ours[key], saved[key]) for key in ours}


def _in_random_state(run: Run, saved: Mapping[str, Any]) -> Iterator[str]:
    ranks = saved.get("ranks", [saved])
    if not isinstance(ranks, list) or not ranks or not all(isinstance(own, dict) for own in ranks):
        yield "rng.ranks is not a list of random states"
        return
    on_cuda = run.placement.device.type == "cuda"
    for own in ranks:
        if "cpu" not in own:
            yield "rng.cpu is missing"
        elif not _is_random_state(own["cpu"], "cpu"):
            yield "rng.cpu is no state of a random generator"
        elif on_cuda and "cuda" in own and not _is_random_state(own["cuda"], "cuda"):
            yield "rng.cuda is no state of a random generator"


def _is_random_state(value: Any, device: str) -> bool:
    if not isinstance(value, Tensor) or value.dtype != torch.uint8:
        return False
    try:
        torch.Generator(device).set_state(value)
    except RuntimeError:  # its size, or a counter in it, is none: only torch can tell
        return False
    return True


def _in_reference_outputs(run: Run, saved: Any) -> Iterator[str]:
    if run.adapted.once is None:
        return
    name = f"{REFERENCES}, the answers of the model that the run started from,"
    if not isinstance(saved, dict):
        yield f"{name} {'are missing' if saved is None else 'are ' + _kind(saved)}"
        return
    for split, source in (("train", run.batches.source), ("val", run.val)):
        outputs = saved.get(split)
        if not isinstance(outputs, dict) or not outputs:
            yield f"{name} are missing for {split}"
        elif not all(isinstance(v, Tensor) and v.dim() and len(v) == len(source) for v in outputs.values()):
            yield f"{name} are not of this data: expected one for each of {len(source)} samples of {split}"
        elif outputs.keys() != (saved.get("train") or {}).keys():
            yield f"{name} differ in kind between train and val"


def _restore_random_state(run: Run, rng: Mapping[str, Any]) -> None:
    """This rank's own where the job is as large as it was; else rank 0 goes on, and the others begin anew."""
    group = run.parallel.group
    ranks = rng.get("ranks", [rng])
    if len(ranks) != group.world and not group.is_main:
        torch.manual_seed(rank_seed(run.recipe.train.seed + run.progress.step, group.rank))
        return
    own = ranks[group.rank]
    torch.set_rng_state(own["cpu"])
    if run.placement.device.type == "cuda" and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"], run.placement.device)


def _kind(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _keys(value: Any) -> str:
    return "with " + ", ".join(_short(key) for key in value) if isinstance(value, Mapping) else _kind(value)


def _short(value: Any) -> str:
    text = str(value) if not isinstance(value, Tensor) else _kind(value)
    return text if len(text) <= 40 else text[:39] + "…"
