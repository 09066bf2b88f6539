"""The network of TensorFlow Privacy's MNIST tutorial. Shapes: B batch, C channels, H height, W width, K classes."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec

MIN_SIDE = 16


@models.register("dp-cnn", task="image_classification", head="head", backbone_first="conv1")
def dp_cnn(spec: ImageSpec) -> nn.Module:
    """Two strided convolutions with pooling, then two linear layers, few parameters for noise: (B, C, H, W) -> (B, K).

    16 filters of 8x8 and 32 of 4x4, then 32-K units: that of TensorFlow Privacy's tutorial for 28x28 images.

    Raises:
        InputError: images smaller than 16 x 16.
    """
    if min(spec.height, spec.width) < MIN_SIDE:
        size = f"{spec.height}x{spec.width}"
        raise InputError(f"dp-cnn on {size} images", f"expected at least {MIN_SIDE}x{MIN_SIDE}", "use cnn or mlp")
    height, width = (((side - 2) // 2 - 4) // 2 for side in (spec.height, spec.width))
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(spec.channels, 16, 8, stride=2, padding=3),
            activation1=nn.ReLU(),
            pool1=nn.MaxPool2d(2, 1),
            conv2=nn.Conv2d(16, 32, 4, stride=2),
            activation2=nn.ReLU(),
            pool2=nn.MaxPool2d(2, 1),
            flatten=nn.Flatten(),
            linear1=nn.Linear(32 * height * width, 32),
            activation3=nn.ReLU(),
            head=nn.Linear(32, spec.num_classes),
        )
    )
