"""Fully connected networks. Shapes: B batch, C channels, H height, W width, K classes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

from pydantic import Field
from torch import nn

from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.models.layers.activations import Activation
from bigmodel_cli.models.layers.activations import activation as act
from bigmodel_cli.models.layers.dropout import Dropout


@models.register(task="image_classification", head="head", backbone_first="head")
def perceptron(spec: ImageSpec) -> nn.Module:
    """One weighted sum per class (Rosenblatt 1958): logits = W x + b."""
    inputs = spec.channels * spec.height * spec.width
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), head=nn.Linear(inputs, spec.num_classes)))


@models.register(task="image_classification", head="head", backbone_first="linear1")
def mlp(
    spec: ImageSpec,
    *,
    hidden: tuple[Annotated[int, Field(gt=0)], ...] = (128,),
    activation: Activation = "relu",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Multi-layer perceptron with any hidden sizes: (B, C, H, W) -> (B, K)."""
    if not hidden:
        return perceptron(spec)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = spec.channels * spec.height * spec.width
    for i, size in enumerate(hidden, 1):
        layers[f"linear{i}"] = nn.Linear(width, size)
        layers[f"activation{i}"] = act(activation)
        if dropout:
            layers[f"dropout{i}"] = Dropout(dropout)
        width = size
    layers["head"] = nn.Linear(width, spec.num_classes)
    return nn.Sequential(layers)
