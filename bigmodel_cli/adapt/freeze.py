"""Fine-tuning methods that select trainable layers by position or type.

A method takes a :class:`~bigmodel_cli.core.types.Start` and returns an ``Adapted``. Its
keyword-only parameters are its options in the recipe's ``start`` section. ``lr`` in a
registration is the default learning rate of ``finetune``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field
from torch import nn

from bigmodel_cli.adapt.logistic_regression import MAX_ITER, STRENGTHS, linear_head
from bigmodel_cli.adapt.logistic_regression import solver as logistic_solver
from bigmodel_cli.core.errors import InputError, nearest
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.types import Adapted, Frozen, Solve, Start

Fraction = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1000)]


@methods.register("full", lr=5e-4, lr_without_batchnorm=5e-5, builds_on_meta=True, auto=4)
def full(start: Start, *, head_rate: Rate = 1.0, solve: bool = False) -> Adapted:
    """Train all parameters, the head at `head_rate` times the learning rate of the others.

    With `solve`, a linear head of a classifier is first solved for, as by probe, and training starts from there, at
    one rate (LP-FT, Kumar et al. 2022): finetune's choice for a new head.
    """
    solver = head_solver(start) if solve else None
    return Adapted(rates=head_rates(start, head_rate) if solver is None else {}, first_head=solver)


def head_solver(start: Start) -> Solve | None:
    """Solves for the head of a classifier by logistic regression; None for another task, or another kind of head."""
    try:
        head = linear_head(start, "full")
    except InputError:
        return None
    return logistic_solver(head.out_features, STRENGTHS, MAX_ITER)


def head_rates(start: Start, rate: float) -> dict[str, float]:
    """The factor of the learning rate for each parameter of the head."""
    return {name: rate for name, _ in start.model.named_parameters() if inside(name, start.head) and rate != 1}


@methods.register("freeze-until", lr=3e-4, lr_without_batchnorm=5e-5)
def freeze_until(start: Start, *, layer: str) -> Adapted:
    """Everything before `layer` is frozen; `layer` and what follows it train.

    Raises:
        InputError: the model has no such layer.
    """
    names = [name for name, _ in start.model.named_modules() if name]
    if layer not in names:
        raise InputError(f"start.layer = {layer!r}: the model has no such layer", nearest(layer, names))
    keys = list(start.model.state_dict())
    first = next((i for i, key in enumerate(keys) if key.startswith(layer + ".")), None)
    if first is None:
        raise InputError(f"start.layer = {layer!r} has no parameters", "expected a trainable layer")
    return Adapted(freeze(start.model, set(keys[:first]) & set(below_head(start))))


@methods.register("gradual", lr=3e-4, lr_without_batchnorm=5e-5)
def gradual(start: Start, *, share: Fraction = 0.5) -> Adapted:
    """The head trains first; layers are unfrozen from the top down over `share` of the epochs (ULMFiT, 2018).

    A head tied to the embedding has no parameters of its own: then the layer below it comes first.

    Raises:
        InputError: there is no layer below the head.
    """
    layers = units(start.model, start.head)
    if not layers:
        raise InputError("gradual: the model has no layer below its head", "expected one to unfreeze", "--method full")
    first = 0 if any(inside(name, start.head) for name, _ in start.model.named_parameters()) else 1
    stages = []
    for unfrozen in range(first, len(layers) + 1):
        frozen_layers = layers[: len(layers) - unfrozen]
        held = [key for key in start.model.state_dict() if any(inside(key, unit) for unit in frozen_layers)]
        threshold = share * (unfrozen - first) / max(len(layers) - first, 1)
        stages.append((threshold, frozen(start.model, held)))
    return Adapted(stages=tuple(stages))


@methods.register("layer-decay", lr=5e-4)
def layer_decay(start: Start, *, decay: Fraction = 0.75, solve: bool = False) -> Adapted:
    """Everything trains, each layer at `decay` times the learning rate of the one above it (BEiT, 2021).

    `solve` as in full.
    """
    layers = units(start.model, start.head)
    depth = {unit: len(layers) - i for i, unit in enumerate(layers)}
    rates = {}
    for name, _ in start.model.named_parameters():
        unit = next((u for u in layers if inside(name, u)), None)
        rates[name] = decay ** depth[unit] if unit is not None else 1.0
    return Adapted(rates=rates, first_head=head_solver(start) if solve else None)


@methods.register("bitfit", lr=1e-3)
def bitfit(start: Start, *, solve: bool = False) -> Adapted:
    """Only the biases and the head train (Ben Zaken et al. 2021). `solve` as in full."""
    held = [key for key in below_head(start) if not key.endswith("bias")]
    return Adapted(freeze(start.model, held), first_head=head_solver(start) if solve else None)


@methods.register("norm-only", lr=1e-3, auto=2)
def norm_only(start: Start, *, solve: bool = False) -> Adapted:
    """Only normalisation layers, with their statistics, and the head train (Frankle et al. 2020). `solve` as in full.

    Raises:
        InputError: the model has no normalization layer.
    """
    norms = [name for name, module in start.model.named_modules() if is_norm(module)]
    if not norms:
        raise InputError("norm-only: the model has no normalization layer", hint="--method bitfit")
    held = [key for key in below_head(start) if not any(inside(key, norm) for norm in norms)]
    return Adapted(freeze(start.model, held), first_head=head_solver(start) if solve else None)


@methods.register("freeze-backbone", lr=1e-3, features=True)
def freeze_backbone(start: Start, *, solve: bool = False) -> Adapted:
    """Only the head trains; the backbone is frozen, with its BatchNorm statistics and dropout.

    With `solve`, a linear head of a classifier is solved for, as by probe, instead of trained in steps: finetune's
    choice unless its flags ask for steps.
    """
    return Adapted(freeze(start.model, below_head(start)), solve=head_solver(start) if solve else None)


def is_norm(module: nn.Module) -> bool:
    """Whether `module` is a normalization layer, such as BatchNorm, LayerNorm or GroupNorm.

    timm's BatchNormAct2d has its activation inside; a block that is called PreNorm has no tensors of its own.
    """
    return "norm" in type(module).__name__.lower() and _is_layer(module)


def _is_layer(module: nn.Module) -> bool:
    """Whether `module` has nothing inside, or tensors of its own and inside only what has none, as an activation."""
    inside = any(True for child in module.children() for _ in (*child.parameters(), *child.buffers()))
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return not any(True for _ in module.children()) or (bool(own) and not inside)


def inside(key: str, unit: str) -> bool:
    """Whether tensor `key` belongs to `unit`, the name of a module or of the tensor itself."""
    return key == unit or key.startswith(unit + ".")


def below_head(start: Start) -> list[str]:
    """The names of all parameters and buffers outside the head."""
    return [key for key in start.model.state_dict() if not inside(key, start.head)]


def units(model: nn.Module, head: str) -> list[str]:
    """The layers below the head, starting at the input. Containers are expanded into blocks; blocks are not split.

    A parameter that belongs to no layer (a class token) is its own unit.
    """
    return [unit for unit in _walk(model, "") if unit != head and not head.startswith(unit + ".")]


def _walk(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, _ in module.named_parameters(recurse=False):
        yield prefix + name
    for name, child in module.named_children():
        if _is_container(child):
            yield from _walk(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            yield prefix + name


def _is_container(module: nn.Module) -> bool:
    """Whether `module` is a sequence, or contains a sequence of blocks (an encoder, a stage)."""
    sequence = (nn.Sequential, nn.ModuleList)
    if isinstance(module, sequence):
        return True
    inner = [m for m in module.modules() if isinstance(m, sequence)]
    return any(sum(any(True for _ in block.children()) for block in m) > 1 for m in inner)


def freeze(model: nn.Module, keys: Iterable[str]) -> Frozen:
    """Freeze the tensors `keys` for the whole run.

    ``requires_grad = False`` alone would not stop BatchNorm's running statistics, and the
    "frozen" features would drift. So their modules are kept in eval mode as well.
    """
    held = frozen(model, keys)
    for name, parameter in model.named_parameters():
        if name in held.tensors:
            parameter.requires_grad_(False)
    return held


def frozen(model: nn.Module, keys: Iterable[str]) -> Frozen:
    """Return `keys` with the layers to keep in eval mode: those that own one of them, or follow such a layer.

    Dropout owns no tensor, so it is treated like the layer before it (or after it, if it comes first).
    """
    names = frozenset(keys)
    leaves = [(name, m) for name, m in model.named_modules() if _is_layer(m)]
    own = {n: [key for key, _ in (*m.named_parameters(n, False), *m.named_buffers(n, False))] for n, m in leaves}
    is_frozen = next((bool(names & set(keys)) for keys in own.values() if keys), False)
    held = []
    for name, module in leaves:
        is_frozen = bool(names & set(own[name])) if own[name] else is_frozen
        if is_frozen:
            held.append(module)
    return Frozen(names, tuple(held))
