"""A small convolutional network for teaching. Shapes: B batch, C channels, H height, W width, K classes."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.models.layers.activations import Activation
from bigmodel_cli.models.layers.activations import activation as act

UNPADDED = 16  # pixels; with fewer, two 5x5 convolutions and two poolings would leave nothing
MIN_SIDE = 4


@models.register(task="image_classification", head="head", backbone_first="conv1")
def cnn(spec: ImageSpec, *, activation: Activation = "relu") -> nn.Module:
    """Two 5x5 convolutions with pooling, then two linear layers: (B, C, H, W) -> (B, K).

    10 and 20 filters, then 320-50-K units for 28x28 images. Images of fewer than 16 pixels are padded by 2, so that a
    convolution keeps their size.

    Raises:
        InputError: images smaller than 4 x 4.
    """
    if min(spec.height, spec.width) < MIN_SIDE:
        size = f"{spec.height}x{spec.width}"
        raise InputError(f"cnn on {size} images", f"expected at least {MIN_SIDE}x{MIN_SIDE}", "use mlp or resnet18")
    padding = 2 if min(spec.height, spec.width) < UNPADDED else 0
    lost = 4 - 2 * padding
    height, width = (((side - lost) // 2 - lost) // 2 for side in (spec.height, spec.width))
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(spec.channels, 10, 5, padding=padding),
            pool1=nn.MaxPool2d(2),
            activation1=act(activation),
            conv2=nn.Conv2d(10, 20, 5, padding=padding),
            pool2=nn.MaxPool2d(2),
            activation2=act(activation),
            flatten=nn.Flatten(),
            linear1=nn.Linear(20 * height * width, 50),
            activation3=act(activation),
            head=nn.Linear(50, spec.num_classes),
        )
    )
