"""Transfers weights to a model for other data: the head by class names, the first layer by channels, tables by rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.interactions import is_solved
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.engine.build.load import TrainedModel, inference_weights
from bigmodel_cli.models.layers.initialise import zero_head
from bigmodel_cli.models.layers.position_embedding import resample_positions


def transfer(model: nn.Module, trained: TrainedModel, spec: Any) -> list[str]:
    """Copy the weights of `trained` into `model`, built for `spec`; a line for each layer kept, replaced or adapted.

    The head is kept where the sets of class names are equal; a new one starts at zero. The first layer is adapted
    where the number of input channels differs: filters are summed over the channels for one gray channel, and
    repeated, divided by the count, for several. A gray image gives the same activations either way. Position
    embeddings are resampled where the number of patches differs.

    Raises:
        InputError: another tensor has another shape.
    """
    state = dict(inference_weights({"model": trained.model.state_dict(), "model_ema": None}))
    target, notes = model.state_dict(), []
    meta = models.get(trained.recipe.model.name).meta
    head = meta["head"]
    keeps_head = set(spec.classes) == set(trained.task.spec.classes)
    if keeps_head:
        notes += [f"head kept: the {len(spec.classes)} classes match by name"] if spec.classes else []
    else:
        for key in [k for k in state if k.startswith(head + ".")]:
            del state[key]
        had = len(trained.task.spec.classes)
        if had:
            notes.append(f"head replaced: {had} classes in the checkpoint, {len(spec.classes)} now")
    notes += adapt_input_channels(state, target, meta, spec.channels if isinstance(spec, ImageSpec) else 0)
    add_new_rows(state, target, meta.get("grows", ()))
    notes += adapt_positions(state, model, meta)
    mismatched = [k for k, v in state.items() if v.shape != target[k].shape]
    if mismatched:
        old_shape, new_shape = tuple(state[mismatched[0]].shape), tuple(target[mismatched[0]].shape)
        hint = "fine-tune at the same size: without --size"
        if is_solved(model):
            name = trained.recipe.model.name
            hint = f"bigmodel train {name} --data ... on all of the data: it is solved, not trained in steps"
        raise InputError(f"{trained.path}: {mismatched[0]} is {old_shape}", f"the data needs {new_shape}", hint)
    model.load_state_dict({**target, **state})
    if not keeps_head:
        zero_head(model, head)
    return notes


def add_new_rows(state: dict[str, Tensor], target: Mapping[str, Tensor], grows: Sequence[str]) -> None:
    """Append to the tables `grows` in `state` the rows that `target` has beyond them: new users or items come last."""
    for name in grows:
        old, new = state[name], target[name]
        if len(old) < len(new) and old.shape[1:] == new.shape[1:]:
            state[name] = torch.cat([old, new[len(old) :].to(old.dtype)])


def first_layers(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the weights that see the input's channels, of a model registered with `meta`; several side by side
    in some networks."""
    return tuple(f"{name}.weight" for name in meta.get("first_layers", (meta["backbone_first"],)))


def adapt_input_channels(
    state: dict[str, Tensor], target: Mapping[str, Tensor], meta: Mapping[str, Any], channels: int
) -> list[str]:
    """Adapt the filters of the first layers in `state` to the input channels in `target`; a line where they differ.

    `channels` are those of the images. A stem that puts the pixels of a block side by side has as many filters for
    each of them.
    """
    notes: list[str] = []
    for name in first_layers(meta):
        if name not in state or state[name].shape == target[name].shape or state[name].dim() != 4:
            continue
        old, new = state[name].shape[1], target[name].shape[1]
        places = max(new // channels, 1) if channels else 1
        if old == new or old % places or new % places:
            continue
        summed = state[name].unflatten(1, (places, -1)).sum(2, keepdim=True)
        count = new // places
        state[name] = (summed.expand(-1, -1, count, -1, -1) / count).flatten(1, 2)
        how = "summed over" if count == 1 else "repeated over"
        notes.append(f"{name}: filters {how} the input channels ({old} -> {new})")
    return notes[:1]


def adapt_positions(state: dict[str, Tensor], model: nn.Module, meta: Mapping[str, Any]) -> list[str]:
    """Resample the position tables in `state` that are for images of another size than `model`'s; a line on them.

    `meta` is the model's registration. Its ``resample``, if any, is the library's own way:
    (state dict, model) -> state dict. Only it knows tables of relative positions, which differ by family.
    """
    target = model.state_dict()
    others = [k for k, v in state.items() if k in target and v.shape != target[k].shape]
    theirs = meta["resample"](state, model) if others and "resample" in meta else {}
    done = []
    for name in others:
        wanted, found = target[name].shape, state[name]
        resampled = theirs.get(name)
        if (resampled is None or resampled.shape != wanted) and _holds_positions(name, found, wanted):
            resampled = resample_positions(found, wanted[-2])
        if resampled is not None and resampled.shape == wanted:
            state[name] = resampled
            done.append(name)
    return [f"resampled for another image size: {done[0]}{', ...' if len(done) > 1 else ''}"] if done else []


def _holds_positions(name: str, found: Tensor, wanted: torch.Size) -> bool:
    """Whether the tensor is a table with a row for each patch of an image, in `wanted` for another number of them."""
    same = (*found.shape[:-2], *found.shape[-1:]) == (*wanted[:-2], *wanted[-1:])
    return "pos" in name and "bias" not in name and found.dim() in (2, 3) and same
