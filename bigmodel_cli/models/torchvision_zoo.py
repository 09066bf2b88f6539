"""Every image classifier of torchvision, as ``tv:resnet50``: see zoo.py."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.models.zoo import Weights, check_size, cropped, imagenet_classes, registered_names, wrong_size

if TYPE_CHECKING:
    from torch import Tensor, nn


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    return registered_names("torchvision")


def torchvision_layers(member: str) -> dict[str, Any]:
    """The head (the last layer), the first convolution and torchvision's default weights."""
    import torch
    from torch import nn
    from torchvision.models import get_model_weights

    with torch.device("meta"):
        model = _torchvision(member, 1000, 224)
    named = [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    heads = [name for name, m in named if 1000 in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))]
    published = get_model_weights(member).DEFAULT  # type: ignore[attr-defined]
    how, file = published.transforms(), published.url.rpartition("/")[2]
    side = how.crop_size[0]
    spec = ImageSpec(3, side, side, imagenet_classes(1000), tuple(how.mean), tuple(how.std))
    interpolation = "bicubic" if how.interpolation.value == "bicubic" else "bilinear"
    spec = spec.with_(**cropped(side, max(how.resize_size)), interpolation=interpolation)
    digest = file.removesuffix(".pth").rpartition("-")[2]  # torch.hub's convention: the first eight hex digits
    return {
        "head": heads[-1],
        "backbone_first": next(name for name, m in named if isinstance(m, nn.Conv2d)),
        "weights": Weights(spec, "torchvision", file, published.url, digest),
    }


def _torchvision(member: str, num_classes: int, side: int) -> Any:
    from torchvision.models import get_model

    options: dict[str, Any] = {"num_classes": num_classes}
    if member in ("googlenet", "inception_v3"):  # a task expects one output, also in training
        options |= {"aux_logits": False, "init_weights": True}
    if member.startswith("vit_"):
        options["image_size"] = side
    if member.startswith("maxvit_"):
        options["input_size"] = (side, side)
    try:
        return get_model(member, weights=None, **options)
    except ValueError as error:  # not every size divides into MaxViT's windows
        raise wrong_size(f"tv:{member}", ImageSpec(3, side, side, ()), error) from None


def torchvision_resampled(state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """`state` with its position table resampled for `model`'s image size by torchvision itself; empty if it cannot."""
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    if not isinstance(model, VisionTransformer):
        return {}
    try:
        return interpolate_embeddings(model.image_size, model.patch_size, OrderedDict(state))  # type: ignore[no-any-return]
    except (KeyError, ValueError):
        return {}


@models.register(
    "tv:*",
    task="image_classification",
    members=torchvision_names,
    describe=torchvision_layers,
    resample=torchvision_resampled,
)
def torchvision_model(spec: ImageSpec, member: str) -> Any:
    """An image classifier from torchvision."""
    from torch import nn

    side = min(spec.height, spec.width)
    model = _torchvision(member, spec.num_classes, side)
    if spec.channels != 3:
        name, old = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
        parent, _, last = name.rpartition(".")
        shape = {k: getattr(old, k) for k in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
        new = nn.Conv2d(spec.channels, old.out_channels, bias=old.bias is not None, **shape)
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        setattr(model.get_submodule(parent), last, new)
    if (spec.height, spec.width) != (224, 224):
        check_size(model, f"tv:{member}", spec)
    return model
