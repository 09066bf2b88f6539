"""Every image classifier of timm and torchvision, as ``timm:resnet18`` and ``tv:resnet50``.

Their names are read from the libraries' source, so listing and completing them imports
neither. Weights are described here and downloaded by ``engine/build/published_weights.py``.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

Fraction = Annotated[float, Field(ge=0, lt=1)]
DECORATED = re.compile(r"^@register_model(?:\(\))?\s*\n(?:@.*\n)*def (\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Weights:
    """Published weights: where to find them, and how their images are prepared.

    `repository` and `file` name a file on the Hugging Face Hub; or `address` is the URL of
    the file, and `digest` the first digits of its SHA-256.
    """

    spec: ImageSpec
    repository: str
    file: str
    address: str = ""
    digest: str = ""


def _registered_names(library: str) -> tuple[str, ...]:
    """The model functions in the source of ``library.models``; empty if it is not installed."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        return ()
    files = sorted((Path(spec.submodule_search_locations[0]) / "models").glob("*.py"))
    return tuple(name for file in files for name in DECORATED.findall(file.read_text(encoding="utf-8")))


@functools.cache
def timm_names() -> tuple[str, ...]:
    return _registered_names("timm")


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    return _registered_names("torchvision")


def _import_timm() -> Any:
    try:
        import timm
    except ImportError:
        what = "timm is not installed"
        raise MachineError(what, "timm:... needs the extra timm", install_line("timm")) from None
    return timm


def _pretrained_config(member: str) -> Any:
    """timm's configuration of a model: ``resnet18``, or with a weight tag ``resnet18.tv_in1k``.

    Raises:
        InputError: the model has no weights with that tag.
    """
    _import_timm()
    from timm.models import get_pretrained_cfg, list_pretrained

    try:
        found = get_pretrained_cfg(member, allow_unregistered=False)
    except RuntimeError:
        architecture = member.partition(".")[0]
        tags = [name.partition(".")[2] for name in list_pretrained(architecture + ".*")]
        raise InputError(f"timm:{member}: no such weights", f"expected one of {', '.join(tags)}") from None
    return found


def timm_layers(member: str) -> dict[str, Any]:
    """The head, the first layer and the weights' location, from timm's own configuration."""
    about = _pretrained_config(member)
    if not about.classifier:
        raise _no_head(member)
    heads, first = _heads(about), _names(about.first_conv or ())
    found: dict[str, Any] = {"head": heads[0], "backbone_first": next(iter(first), ""), "first_layers": first}
    if len(heads) > 1:
        found["head"], found["renames"] = HEADS, {f"{name}.": f"{HEADS}.{i}." for i, name in enumerate(heads)}
    if about.hf_hub_id:
        _, height, width = about.input_size
        spec = ImageSpec(3, height, width, imagenet_classes(about.num_classes), tuple(about.mean), tuple(about.std))
        if height == width and about.crop_mode == "center":
            spec = spec.with_(**cropped(height, math.floor(height / about.crop_pct)))
        spec = spec.with_(interpolation="bilinear" if about.interpolation == "bilinear" else "bicubic")
        found["weights"] = Weights(spec, about.hf_hub_id, about.hf_hub_filename or "model.safetensors")
    return found


HEADS = "all_heads"
"""The list of the heads of a network that has several, as those that were distilled, and adds up what they say."""


def _names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _heads(about: Any) -> tuple[str, ...]:
    """The layers that give the classes, most often one. A list, as of ``head.0`` and ``head.1``, is one."""
    names = _names(about.classifier)
    owners = [name.rpartition(".")[0] if name.rpartition(".")[2].isdigit() else name for name in names]
    return tuple(dict.fromkeys(owners)) if len(names) > 1 else names


def _gather(model: nn.Module, heads: tuple[str, ...]) -> nn.Module:
    """`model` with the layers `heads` in one list, so that one name stands for all that depends on the classes.

    They stay attributes where they were, from where the network calls them.
    """
    from torch import nn

    found = []
    for name in heads:
        owner, _, last = name.rpartition(".")
        found.append(model.get_submodule(name))
        parent = model.get_submodule(owner)
        if isinstance(parent, nn.Sequential):
            _keep_order(parent)
        del parent._modules[last]
        parent.__dict__[last] = found[-1]
    model.add_module(HEADS, nn.ModuleList(found))
    return model


def _keep_order(sequence: nn.Sequential) -> None:
    """Let `sequence` call its layers of now, also those that are registered elsewhere later on."""
    names = tuple(sequence._modules)

    def layers(self: nn.Sequential) -> Iterator[nn.Module]:
        return (getattr(self, name) for name in names)

    sequence.__class__ = type(type(sequence).__name__, (type(sequence),), {"__iter__": layers})


def cropped(size: int, shorter: int) -> dict[str, Any]:
    """The fields of a spec whose images are resized to `shorter` on their shorter side, then cropped to `size`."""
    return {"square": shorter, "crop": size / shorter}


def imagenet_classes(count: int) -> tuple[str, ...]:
    """`count` class names: ImageNet's for 1000, with duplicates numbered; otherwise ``class 0``, ``class 1``, ..."""
    if count != 1000:
        return tuple(f"class {k}" for k in range(count))
    from torchvision.models import ResNet18_Weights

    names = ResNet18_Weights.DEFAULT.meta["categories"]
    return tuple(n if names.count(n) == 1 else f"{n} ({k})" for k, n in enumerate(names))


def timm_resampled(state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """`state` with its position tables resampled for `model`'s image size by timm itself; empty if it cannot."""
    convert = vars(sys.modules[type(model).__module__]).get("checkpoint_filter_fn")
    if convert is None:
        return {}
    try:
        return convert(dict(state), model)  # type: ignore[no-any-return]
    except (KeyError, RuntimeError, ValueError, AttributeError, AssertionError):
        return {}


@models.register(
    "timm:*", task="image_classification", members=timm_names, describe=timm_layers, resample=timm_resampled
)
def timm_model(spec: ImageSpec, member: str, *, dropout: Fraction = 0.0, drop_path: Fraction = 0.0) -> Any:
    """An image classifier from timm."""
    timm, about = _import_timm(), _pretrained_config(member)
    options: dict[str, Any] = {"drop_rate": dropout}
    if drop_path:
        options["drop_path_rate"] = drop_path
    if about.fixed_input_size:
        options["img_size"] = (spec.height, spec.width)
    try:
        model = timm.create_model(
            member.partition(".")[0], num_classes=spec.num_classes, in_chans=spec.channels, **options
        )
    except TypeError:
        if drop_path:
            raise InputError(f"timm:{member} has no drop_path", "expected 0, or a residual network") from None
        raise _no_head(member) from None  # every classifier takes a drop_rate
    except (AssertionError, ValueError, RuntimeError) as error:
        size = f"{spec.channels}x{spec.height}x{spec.width}"
        raise InputError(
            f"timm:{member} for {size} images: {str(error).splitlines()[0]}", hint="another size"
        ) from None
    heads = _heads(about)
    try:
        model.get_submodule(heads[0])
    except AttributeError:
        raise _no_head(member) from None
    return _gather(model, heads) if len(heads) > 1 else model


def _no_head(member: str) -> InputError:
    return InputError(f"timm:{member} has no head", "expected a classifier", "bigmodel models --search ...")


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
        raise InputError(
            f"tv:{member} for {side}x{side} images: {str(error).splitlines()[0]}", hint="another size"
        ) from None


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
    return model
