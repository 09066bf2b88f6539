"""Sets up private training: its batches and gradients, and what it refuses because nobody could account for it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bigmodel_cli.core.answering import Answers
from bigmodel_cli.core.errors import InputError, shorten
from bigmodel_cli.core.interactions import is_solved
from bigmodel_cli.core.networks import InitialisedFromData
from bigmodel_cli.core.privacy import NOT_ACCOUNTED
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.sources import OrderedSource
from bigmodel_cli.core.tasks import Mixes, SampleKey
from bigmodel_cli.core.types import Adapted, DataBundle, Task
from bigmodel_cli.data.batches import Batches
from bigmodel_cli.data.poisson_batches import PoissonBatches
from bigmodel_cli.engine.build.data import is_same_data
from bigmodel_cli.engine.device.convolutions import own_convolutions
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.distributed.process_group import Group
from bigmodel_cli.engine.training.gradients import MeanGradient
from bigmodel_cli.engine.training.privacy_budget import Budget, default_delta, noise_for
from bigmodel_cli.engine.training.private_gradients import PrivateGradient
from bigmodel_cli.models.layers.groupnorm import InPlaceOfBatchNorm


def is_private(recipe: Recipe) -> bool:
    return recipe.privacy.epsilon is not None


def check_private(recipe: Recipe, task: Task, bundle: DataBundle, start: Mapping[str, Any] | None) -> None:
    """Check that the steps of `recipe` can be accounted for; `start` is the meta data of the checkpoint it starts from.

    Raises:
        InputError: they cannot, or what the start has learned of the same data was not private.
    """
    if not is_private(recipe):
        return
    train = recipe.train
    augment = task.augment if isinstance(task, Answers) else None
    mixes = isinstance(augment, Mixes) and augment.mixing is not None
    refused = (
        (train.balance != "none", "train.balance", "the classes' numbers of samples change what one sample adds"),
        (train.skip_nonfinite > 0, "train.skip_nonfinite", "whether a step is skipped depends on single samples"),
        (mixes, f"augment.name={recipe.augment.name}", "it mixes samples with each other"),
        (
            bundle.spec.kind == "interactions",
            f"data {recipe.data.name}",
            "a sample would be one interaction and not a person",
        ),
    )
    for applies, what, why in refused:
        if applies:
            raise InputError(f"private training with {what}", why)
    saved = (start or {}).get("data") or {}
    if start is None or not (is_same_data(saved, recipe.data) or saved.get("fingerprint") == bundle.fingerprint):
        return
    what = f"private training from a checkpoint that has learned from {recipe.data.name} already"
    if not start.get("privacy"):
        raise InputError(what, "without privacy, which nothing can add later", "another start, or other data")
    raise InputError(what, "what both spend would add up", "continue that run: --resume --out RUN")


def private_batches(recipe: Recipe, batches: Batches) -> Batches:
    """`batches`, drawn as the accounting needs them if `recipe` is private.

    Raises:
        InputError: samples can only be read in their own order.
    """
    if not is_private(recipe):
        return batches
    if isinstance(batches.source, OrderedSource):
        what = "private training on a stream of samples"
        raise InputError(what, "expected data that can be drawn from at random", "unpack the shards into folders")
    seed = recipe.privacy.noise_seed
    key = secrets.token_hex(32) if seed is None else f"seed {seed}"
    return PoissonBatches(**{f.name: getattr(batches, f.name) for f in fields(batches)}, key=key)


def private_layers(recipe: Recipe, model: nn.Module, adapted: Adapted) -> tuple[Adapted, list[str]]:
    """`adapted` with the statistics of each BatchNorm as they are in the weights that private training starts from.

    Raises:
        InputError: the method solves for weights, or the model is made from data.
    """
    if not is_private(recipe):
        return adapted, []
    if adapted.solve is not None or adapted.first_head is not None or is_solved(model):
        what = f"private training of {recipe.model.name} by {recipe.start.method}: it is solved for, without noise"
        raise InputError(what, "expected gradient steps", "--method full, or --set start.solve=false")
    if isinstance(model, InitialisedFromData):
        raise InputError(f"private training of {recipe.model.name}", "its first weights are computed from samples")
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    groups = sum(isinstance(m, InPlaceOfBatchNorm) for m in model.modules())
    notes = [f"GroupNorm in place of BatchNorm in {groups} layers, since a batch must not mix its samples"]
    if not norms:
        return adapted, notes if groups else []
    if not recipe.start.trained:
        what = f"private training of {recipe.model.name} with BatchNorm {next(iter(norms))}"
        raise InputError(what, "its statistics mix samples", "--set model.batchnorm=group")
    buffers = {f"{name}.{key}" for name, m in norms.items() for key, _ in m.named_buffers()}
    frozen = replace(
        adapted.frozen,
        tensors=adapted.frozen.tensors | buffers,
        modules=(*adapted.frozen.modules, *(m for m in norms.values() if m not in adapted.frozen.modules)),
    )
    return replace(adapted, frozen=frozen), [
        f"{len(norms)} BatchNorm layers keep the statistics of their starting weights, since a batch must not mix its "
        "samples"
    ]


def gradient_step(
    recipe: Recipe, task: Task, model: nn.Module, adapted: Adapted, batches: Batches, steps: int, on: Placement,
    group: Group,
) -> tuple[MeanGradient, list[str]]:  # fmt: skip
    """How the steps of `recipe` get their gradients, and lines for the user.

    Raises:
        InputError: private training in several processes, or of a model whose buffers follow the samples.
        MachineError: Opacus is not installed.
    """
    if not isinstance(batches, PoissonBatches):
        return MeanGradient(), []
    if group.world > 1:
        raise InputError("private training in several processes", "expected one", "without --nproc")
    own_convolutions(model, False)  # whose product has a backward pass of its own, for whole batches
    _check_buffers(task, model, adapted, batches, on)
    section, samples = recipe.privacy, len(batches.source)
    assert section.epsilon is not None
    delta = section.delta or default_delta(samples)
    noise = noise_for(section.epsilon, delta, batches.rate, steps, section.accountant)
    secret = section.noise_seed is None
    budget = Budget(section.epsilon, delta, noise, batches.rate, section.clip_norm, section.accountant, secret)
    notes = [
        f"private: at most epsilon {section.epsilon:g} at delta {delta:g} after {steps:,} steps; noise {noise:.3g} x "
        f"norm {section.clip_norm:g}, each sample drawn with probability 1/{round(1 / batches.rate)}",
        NOT_ACCOUNTED,
    ]
    if delta >= 1 / samples:
        notes.append(f"delta {delta:g} is not below 1/{samples:,}: it allows to publish a sample as it is")
    if not secret:
        notes.append("privacy.noise_seed: noise and sampling are known to who reads the recipe, so nothing is hidden")
    if recipe.placement.compile is True:
        notes.append("--compile: not used, as gradients are those of single samples")
    return PrivateGradient(budget, samples * batches.rate, batches.key, steps), notes


def _check_buffers(task: Task, model: nn.Module, adapted: Adapted, batches: Batches, on: Placement) -> None:
    """Refuse a model that remembers samples in its buffers, where no noise is added."""
    before = {name: b.clone() for name, b in model.named_buffers()}
    if not before:
        return
    indices = torch.arange(min(2, len(batches.source)))
    batch = on.batch(batches.source.gather(indices))
    micro = on.inputs(task.prepare(batch, SampleKey(0, 0, batch["index"])))
    random = torch.get_rng_state()
    model.train()
    for module in adapted.frozen.modules:
        module.eval()
    with torch.no_grad(), on.autocast():
        task.loss(model, micro)
    torch.set_rng_state(random)
    changed = [name for name, b in model.named_buffers() if not torch.equal(b, before[name])]
    if changed:
        what = f"private training of a model whose {shorten(changed)} follow the samples"
        raise InputError(what, "expected buffers that stay", "another model or method")
