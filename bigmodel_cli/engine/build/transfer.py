"""Weights of a trained model into another one: the head by class names, the first layer by its channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.engine.build.load import Trained, weights


def transfer(model: nn.Module, trained: Trained, spec: Any) -> list[str]:
    """Copy the weights of `trained` into `model`, built for `spec`; say what was kept and what was not.

    The head is kept where the class names are the same set. The first layer is
    adapted where the number of input channels differs: filters are summed over the
    channels for one grey channel, and repeated, divided by the count, for several,
    so that a grey image gives the same activations either way.
    """
    state = dict(weights({"model": trained.model.state_dict(), "model_ema": None}))
    ours, notes = model.state_dict(), []
    meta = models.get(trained.recipe.model.name).meta
    head, first = meta["head"], meta["backbone_first"] + ".weight"
    if set(spec.classes) == set(trained.task.spec.classes):
        notes += [f"head kept: the {len(spec.classes)} classes match by name"] if spec.classes else []
    else:
        for key in [k for k in state if k.startswith(head + ".")]:
            del state[key]
        notes.append(
            f"head replaced: {len(trained.task.spec.classes)} classes in the checkpoint, {len(spec.classes)} now"
        )
    notes += fit_channels(state, ours, first)
    wrong = [k for k, v in state.items() if v.shape != ours[k].shape]
    if wrong:
        was, now = tuple(state[wrong[0]].shape), tuple(ours[wrong[0]].shape)
        raise InputError(f"{trained.path}: {wrong[0]} is {was}", f"the data needs {now}", "fine-tune on the same size")
    model.load_state_dict({**ours, **state})
    return notes


def fit_channels(state: dict[str, Tensor], ours: Mapping[str, Tensor], first: str) -> list[str]:
    """Adapt the filters of the tensor `first` in `state` to the input channels that `ours` has; say so."""
    if first not in state or state[first].shape == ours[first].shape or state[first].dim() != 4:
        return []
    old, new = state[first].shape[1], ours[first].shape[1]
    if old == new:
        return []
    summed = state[first].sum(1, keepdim=True)
    state[first] = summed if new == 1 else summed.expand(-1, new, -1, -1) / new
    how = "summed over" if new == 1 else "repeated over"
    return [f"{first}: filters {how} the input channels ({old} -> {new})"]
