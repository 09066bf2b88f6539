"""Every image classifier of timm, as ``timm:resnet18``; those of torchvision are in torchvision_zoo.py.

Their names are read from the libraries' source, so listing and completing them imports
neither. Weights are described here and downloaded by ``engine/build/published_weights.py``.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
import sys
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


def registered_names(library: str) -> tuple[str, ...]:
    """The model functions in the source of ``library.models``; empty if it is not installed."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        return ()
    files = sorted((Path(spec.submodule_search_locations[0]) / "models").glob("*.py"))
    return tuple(name for file in files for name in DECORATED.findall(file.read_text(encoding="utf-8")))


@functools.cache
def timm_names() -> tuple[str, ...]:
    return registered_names("timm")


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
        raise wrong_size(f"timm:{member}", spec, error) from None
    heads = _heads(about)
    try:
        model.get_submodule(heads[0])
    except AttributeError:
        raise _no_head(member) from None
    if (spec.height, spec.width) != tuple(about.input_size[1:]):
        check_size(model, f"timm:{member}", spec)
    return _gather(model, heads) if len(heads) > 1 else model


def check_size(model: nn.Module, name: str, spec: ImageSpec) -> None:
    """Call `model`, called `name`, with an image of a size that it was not published for.

    Raises:
        InputError: it does not take it, which some networks say only when they are called.
    """
    import torch

    device = next(model.parameters()).device
    if device.type == "meta":  # where some networks do not run
        return
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, spec.channels, spec.height, spec.width, device=device))
    except Exception as error:  # each network has its own
        raise wrong_size(name, spec, error) from None
    model.train()


def wrong_size(name: str, spec: ImageSpec, error: Exception) -> InputError:
    size = f"{spec.channels}x{spec.height}x{spec.width}"
    why = (str(error).splitlines() or [""])[0] or type(error).__name__
    return InputError(f"{name} for {size} images: {why}", hint="another size")


def _no_head(member: str) -> InputError:
    return InputError(f"timm:{member} has no head", "expected a classifier", "bigmodel models --search ...")
