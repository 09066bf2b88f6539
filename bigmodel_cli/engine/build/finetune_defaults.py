"""The length of fine-tuning, its batch and its rates, for the data at hand: what ``finetune`` uses unless told.

benchmarks/RESULTS-published.md says what of this has been measured on real data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import methods, models
from bigmodel_cli.core.sources import OrderedSource
from bigmodel_cli.core.types import ImageSpec, Source, Spec
from bigmodel_cli.engine.build.model import build_architecture
from bigmodel_cli.engine.device.ranks import read_ranks
from bigmodel_cli.models.layers.meta_init import init_on_meta

STEPS = 200
"""Optimizer steps worth doing on a small data set."""
AUGMENTED_STEPS = 300
"""The same for images that are augmented, so that no pass repeats another."""
EPOCHS = (3, 20)
"""Fewest and most passes: many samples are still seen a few times, and few ones not a hundred times."""
BATCH = (4, 128)
BATCH_SHARE = 0.7
"""A batch is the square root of this share of the samples, as a power of two: 16 of 270, 32 of 900, 64 of 9,600."""
NEW_HEAD_RATE = 4.0
"""Learning rate of a new head, relative to trained weights' (as in ULMFiT and BEiT, upper layers learn faster)."""
KEEP_STATISTICS = 5_000
"""Samples up to which BatchNorm keeps the statistics of published weights: small batches would spoil them."""
AVERAGED = 1 / 4
"""Share of the steps whose weights are averaged: early steps, at the full rate, are otherwise worse than the start."""
LOOKED_AT = 16
"""Images by which it is decided whether a data set is in colour."""
SHADE = 16
"""Difference of a pixel's channels, of 255, from which an image is in colour: compression adds some to grey ones."""
SIDES = 16
"""Sides of crops are multiples of this, as most networks halve their maps four or five times."""
MOST_SOLVED = 50_000
"""Samples up to which a frozen backbone's head is solved for; beyond, gradient steps on cached features are quicker."""


@dataclass(frozen=True)
class Length:
    """How long to train: `epochs` of batches of `batch_size`; stop after `patience` epochs without improvement."""

    batch_size: int
    epochs: int
    patience: int


def suitable_length(samples: int, batch_size: int | None = None, steps: int = STEPS) -> Length:
    """The length for `samples` training samples: about `steps`, in batches of the square root of their number.

    `batch_size` is the batch to use, if it is given.
    """
    size = batch_size or min(max(2 ** round(math.log2(math.sqrt(BATCH_SHARE * samples))), BATCH[0]), BATCH[1])
    epochs = min(max(math.ceil(steps / math.ceil(samples / size)), EPOCHS[0]), EPOCHS[1])
    return Length(size, epochs, max(2, math.ceil(epochs / 3)))


def suitable_lr(recipe: Recipe, spec: Spec) -> float:
    """The method's learning rate; a gentler one for other programs' networks without BatchNorm, if it has one.

    Transformers and their like are fine-tuned at some 5e-5 (Devlin et al. 2018), which BatchNorm networks hardly feel.
    """
    meta = methods.get(recipe.start.method).meta
    gentle = meta.get("lr_without_batchnorm")
    return float(meta["lr"] if gentle is None or _has_batchnorm(recipe, spec) else gentle)


def _has_batchnorm(recipe: Recipe, spec: Spec) -> bool:
    try:
        with init_on_meta():
            model = build_architecture(recipe, spec)
    except InputError:  # building it for real will say why
        return isinstance(spec, ImageSpec)
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def _trains_only_head(recipe: Recipe) -> bool:
    """Whether the method leaves all below the head as it is."""
    return bool(methods.get(recipe.start.method).meta.get("features"))


def suitable_options(recipe: Recipe, samples: int, trains: bool, new_head: bool) -> dict[str, Any]:
    """Options of the fine-tuning method, among those it has.

    With `trains`, the user's flags ask for gradient steps. `new_head` says that the head starts at zero.
    """
    method = methods.get(recipe.start.method)
    fields = method.schema.model_fields
    solvable = read_ranks().world == 1 and recipe.privacy.epsilon is None and recipe.loss.name == "cross_entropy"
    solves = not trains if _trains_only_head(recipe) else new_head and solvable
    wanted = {"solve": solves and samples <= MOST_SOLVED, "head_rate": NEW_HEAD_RATE if new_head else 1.0}
    return {key: value for key, value in wanted.items() if key in fields}


def suitable_statistics(recipe: Recipe, spec: Spec, samples: int) -> dict[str, Any]:
    """Whether BatchNorm keeps the statistics of published weights, where a method trains more than the head."""
    few = samples <= KEEP_STATISTICS and not _trains_only_head(recipe) and _has_batchnorm(recipe, spec)
    return {"statistics": "keep"} if few else {}


def suitable_average(recipe: Recipe, spec: Spec, samples: int, steps: int) -> dict[str, Any]:
    """The decay of the average of the weights of few images' runs: it reaches over AVERAGED of the `steps`."""
    if _trains_only_head(recipe) or samples > KEEP_STATISTICS or not isinstance(spec, ImageSpec):
        return {}
    return {"ema_decay": round(min(max(1 - 1 / (AVERAGED * steps), 0.9), 0.999), 4)}


def suitable_augment(recipe: Recipe, train: Source, spec: Spec) -> dict[str, Any]:
    """The augmentation of image files for published weights that change: crops, and mirror images of colour photos.

    Grey images are cropped less and not mirrored: writing, scans and X-rays change their meaning. The crops have fewer
    pixels than the images of evaluation, if the model takes such images, so that things are as large in both.
    """
    if not isinstance(spec, ImageSpec) or spec.square is None or _trains_only_head(recipe):
        return {}
    colour = _in_colour(train)
    area = 0.25 if colour else 0.5
    side = round(math.sqrt((1 + area) / 2) * spec.height / SIDES) * SIDES
    smaller = {"side": side} if spec.height == spec.width and _takes_side(recipe, spec, side) else {}
    return {"name": "resized_crop", "area": area, "flip": colour, **smaller}


def _takes_side(recipe: Recipe, spec: ImageSpec, side: int) -> bool:
    """Whether the model of `recipe` takes images of that side as it takes its own: built and run without memory."""
    try:
        with init_on_meta(), torch.no_grad():
            model = build_architecture(recipe, spec).eval()
            model(torch.empty(2, spec.channels, side, side, device="meta"))
    except Exception:  # each network has its own error for images of another size
        return False
    return not any(_knows_places(module) for module in model.modules())


def _knows_places(module: nn.Module) -> bool:
    """Whether a layer has weights for each place of a whole map, as VGG's head: smaller maps are stretched for it."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return module.output_size not in (1, (1, 1))
    if not isinstance(module, nn.Conv2d) or module.groups > 1:
        return False
    return module.padding == (0, 0) and module.stride == (1, 1) and min(module.kernel_size) > 3


def _in_colour(train: Source) -> bool:
    """Whether most images are, of some that are spread over `train`."""
    images = train.gather(some_of(train, LOOKED_AT))["image"].int()  # (B,C,H,W) 0..255
    apart = (images.amax(1) - images.amin(1)).flatten(1).amax(1)
    return bool((apart > SHADE).double().mean() > 0.5)


def some_of(source: Source, most: int) -> Tensor:
    """Indices of at most `most` samples that are spread over `source`; the first ones of a stream."""
    count = min(most, len(source))
    if isinstance(source, OrderedSource):  # far apart means far to fetch
        return torch.arange(count)
    return torch.linspace(0, len(source) - 1, count).long()


def has_classes(recipe: Recipe) -> bool:
    """Whether the model classifies: then samples count, whatever the tokenizer makes of them."""
    from bigmodel_cli.core.registry import tasks

    return tasks.get(models.get(recipe.model.name).meta["task"]).meta.get("answers") == "classes"
