"""AlexNet (Krizhevsky 2014, "One weird trick"). Shapes: B batch, C channels, H height, W width, K classes."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.models.layers.activations import Activation
from bigmodel_cli.models.layers.activations import activation as act
from bigmodel_cli.models.layers.dropout import Dropout

MIN_SIDE = {"small": 4, "imagenet": 63}  # pixels; with fewer, a pooling layer would have an empty input


class AlexNet(nn.Module):
    """(B, C, H, W) -> (B, K). State-dict keys are torchvision's, so its weights load strictly."""

    def __init__(self, channels: int, num_classes: int, small: bool, activation: Activation, dropout: float) -> None:
        super().__init__()
        if small:  # the strides of the 224-pixel stem would reduce a small image to nothing
            first: list[nn.Module] = [nn.Conv2d(channels, 64, 3, padding=1), act(activation), nn.MaxPool2d(2)]
            middle: nn.Module = nn.MaxPool2d(2)
            last: nn.Module = nn.Identity()
        else:
            first = [nn.Conv2d(channels, 64, 11, stride=4, padding=2), act(activation), nn.MaxPool2d(3, 2)]
            middle, last = nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2)
        self.features = nn.Sequential(
            *first,
            nn.Conv2d(64, 192, 3 if small else 5, padding=1 if small else 2),
            act(activation),
            middle,
            nn.Conv2d(192, 384, 3, padding=1),
            act(activation),
            nn.Conv2d(384, 256, 3, padding=1),
            act(activation),
            nn.Conv2d(256, 256, 3, padding=1),
            act(activation),
            last,
        )
        grid = 2 if small else 6
        self.avgpool = nn.AdaptiveAvgPool2d((grid, grid))
        self.classifier = nn.Sequential(
            Dropout(dropout),
            nn.Linear(256 * grid * grid, 4096 if not small else 1024),
            act(activation),
            Dropout(dropout),
            nn.Linear(4096 if not small else 1024, 4096 if not small else 1024),
            act(activation),
            nn.Linear(4096 if not small else 1024, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))  # type: ignore[no-any-return]


@models.register(task="image_classification", head="classifier.6", backbone_first="features.0")
def alexnet(
    spec: ImageSpec,
    *,
    stem: Literal["auto", "small", "imagenet"] = "auto",
    activation: Activation = "relu",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
) -> nn.Module:
    """AlexNet; for images of at most 64 pixels, smaller filters and a narrower classifier.

    Raises:
        InputError: the images are smaller than 4 x 4, or than 63 x 63 with the imagenet stem.
    """
    side = min(spec.height, spec.width)
    if stem == "auto":
        stem = "small" if side <= 64 else "imagenet"
    least = MIN_SIDE[stem]
    if side < least:
        what = f"alexnet with the {stem} stem on {spec.height}x{spec.width} images"
        hint = "use mlp or resnet18" if stem == "small" else "--set model.stem=small"
        raise InputError(what, f"expected at least {least}x{least}", hint)
    return AlexNet(spec.channels, spec.num_classes, stem == "small", activation, dropout)
