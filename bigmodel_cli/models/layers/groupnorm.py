"""GroupNorm in place of BatchNorm, whose statistics mix the samples of a batch."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bigmodel_cli.core.errors import InputError

MOST_GROUPS = 16  # as De et al. 2022, "Unlocking High-Accuracy Differentially Private Image Classification"
LEAST_CHANNELS = 4  # of a group: one value alone has no variance


class InPlaceOfBatchNorm(nn.GroupNorm):
    """A GroupNorm that replaced a BatchNorm."""


def with_groupnorm(model: nn.Module, name: str) -> nn.Module:
    """`model`, called `name` in messages, with a GroupNorm in place of each BatchNorm; in place.

    Raises:
        InputError: a layer is a BatchNorm with something else inside, such as an activation.
    """
    for path, layer in list(model.named_modules()):
        if not isinstance(layer, _BatchNorm):
            continue
        if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            what = f"{name}: {path} is a {type(layer).__name__}, which normalises over the batch"
            raise InputError(what, "expected a BatchNorm that GroupNorm can replace", "another model")
        new = InPlaceOfBatchNorm(groups(layer.num_features), layer.num_features, layer.eps, layer.affine)
        model.set_submodule(path, new)
    return model


def groups(channels: int) -> int:
    """The number of groups: the largest divisor that leaves each enough channels."""
    fit = [g for g in range(1, MOST_GROUPS + 1) if channels % g == 0 and channels // g >= LEAST_CHANNELS]
    return max(fit, default=1)
