"""Layers below the head that published weights lack: they are random, so no method may keep them as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from torch import nn

from bigmodel_cli.core.answering import Answers
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.types import Adapted, Frozen, Start
from bigmodel_cli.engine.training.cached_features import no_vector_reason


def adapt(recipe: Recipe, start: Start, new: Collection[str]) -> tuple[Adapted, list[str]]:
    """Apply the recipe's fine-tuning method to `start`, and let the parameters `new` train even where it freezes them.

    `new` are names in the model as it starts, without those of the head. Also returns lines for the user.

    Raises:
        InputError: the method does not fit the model, or leaves nothing of it to train.
    """
    method, options, notes = methods.get(recipe.start.method), dict(recipe.start.options), list[str]()
    fresh = {name: p for name, p in start.model.named_parameters() if name in new}
    if fresh and "solve" in method.schema.model_fields:  # solving for a head needs features that stay
        options["solve"] = False
    if options.get("solve") and (why := _not_solvable(start)):
        options["solve"], notes = False, [f"the head is trained in steps and not solved for: {why}"]
    adapted = method(start, **options)
    if fresh:
        adapted, lines = _train_new(start.model, adapted, fresh)
        notes += lines
    if recipe.start.statistics == "keep":
        adapted = replace(adapted, frozen=_with_statistics(start.model, adapted.frozen))
    if adapted.solve is None and not any(p.requires_grad for p in start.model.parameters()):
        what = f"{recipe.start.method} leaves nothing of {recipe.model.name} to train"
        raise InputError(what, "its head is the embedding" if _is_tied(start) else None, "--lora 8, or --method full")
    return adapted, notes


def _not_solvable(start: Start) -> str:
    """Why a linear head cannot be solved for; "" where it can, or where the method sees by itself that it cannot."""
    linear = isinstance(start.model.get_submodule(start.head), nn.Linear) and isinstance(start.task, Answers)
    return no_vector_reason(start.model, start.task, start.head) if linear else ""


def _with_statistics(model: nn.Module, frozen: Frozen) -> Frozen:
    """`frozen`, and the running statistics of all BatchNorm layers. Their scale and shift train where they did.

    Those of a few batches differ from the ones that the trained weights rely on: of 864 photos that costs 6 points
    of accuracy (benchmarks/RESULTS-published.md).
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    names = {f"{name}.{key}" for name, layer in layers.items() for key, _ in layer.named_buffers(recurse=False)}
    return Frozen(frozen.tensors | names, (*frozen.modules, *layers.values()))


def _is_tied(start: Start) -> bool:
    """Whether the head has no weights but those of a layer below it."""
    every = start.model.named_parameters(remove_duplicate=False)
    below = {id(p) for name, p in every if not name.startswith(start.head + ".")}
    return all(id(p) in below for p in start.model.get_submodule(start.head).parameters())


def _train_new(model: nn.Module, adapted: Adapted, new: Mapping[str, nn.Parameter]) -> tuple[Adapted, list[str]]:
    """`adapted` with the parameters `new` among what trains, and lines on them; their names are those of the start."""
    if adapted.solve is not None:
        what = f"{_layers(new)}: new, and random, since only the head is solved for"
        return adapted, [f"{what}; --method freeze-backbone trains both"]
    now = {id(p) for p in model.parameters()}
    packed = [name for name, p in new.items() if id(p) not in now]
    notes = [f"{_layers(packed)}: new, but stored in 4 bits, so that only its adapter trains"] if packed else []
    ids = {id(p) for p in new.values()}
    names = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in ids}
    if not names & adapted.frozen.tensors.union(*(held.tensors for _, held in adapted.stages)):
        return adapted, notes
    owners = {id(m) for m in model.modules() if any(id(p) in ids for p in m.parameters(recurse=False))}

    def without_new(held: Frozen) -> Frozen:
        return Frozen(held.tensors - names, tuple(m for m in held.modules if id(m) not in owners))

    for parameter in new.values():
        parameter.requires_grad_(True)
    notes.append(f"{_layers(n for n in new if n not in packed)}: new, so it trains although what is below is frozen")
    stages = tuple((share, without_new(held)) for share, held in adapted.stages)
    return replace(adapted, frozen=without_new(adapted.frozen), stages=stages), notes


def _layers(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[0] for name in names}))
