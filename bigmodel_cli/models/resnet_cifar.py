"""The small residual networks of He et al. 2015, section 4.2, and the same networks without shortcuts.

6n + 2 layers: a 3x3 convolution, three stages of n blocks with 16, 32 and 64 filters, global
average pooling and a linear layer. Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.models.layers.activations import Activation
from bigmodel_cli.models.layers.activations import activation as act
from bigmodel_cli.models.resnet import DropPath, drop_rates, projection

Shortcut = Literal["A", "B", "none"]
"""Where the shapes differ, A pads with zeros and B projects. "none" is a plain network without any shortcut."""


class Pad(nn.Module):
    """Option A in the paper, without parameters: (B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2)
        )


class Block(nn.Module):
    """Two 3x3 convolutions and, unless plain, a shortcut: (B, inputs, H, W) -> (B, width, H/stride, W/stride).

    post-activation (He et al. 2015):  relu(bn(conv(relu(bn(conv(x))))) + x)
    pre-activation (He et al. 2016):   conv(relu(bn(conv(relu(bn(x)))))) + x
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        *,
        shortcut: Shortcut,
        preactivation: bool,
        activation: Activation,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.preactivation, self.residual = preactivation, shortcut != "none"
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs if preactivation else width)
        self.activation1 = act(activation)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.activation2 = act(activation)
        self.drop_path = DropPath(drop_path)
        self.downsample: nn.Module | None = None
        if self.residual and (stride != 1 or inputs != width):
            self.downsample = projection(inputs, width, stride) if shortcut == "B" else Pad(width - inputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        if self.preactivation:
            y = self.conv1(self.activation1(self.bn1(x)))
            return self._add(x, self.conv2(self.activation2(self.bn2(y))))
        y = self.activation1(self.bn1(self.conv1(x)))
        return self.activation2(self._add(x, self.bn2(self.conv2(y))))  # type: ignore[no-any-return]

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.residual:
            return y
        return self.drop_path(y) + (x if self.downsample is None else self.downsample(x))  # type: ignore[no-any-return]


class CifarResNet(nn.Module):
    """(B, C, H, W) -> (B, K)."""

    def __init__(self, depth: int, channels: int, num_classes: int, drop_path: float, **block: Any) -> None:
        super().__init__()
        n, preactivation = (depth - 2) // 6, block["preactivation"]
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64 if preactivation else 16)
        self.activation = act(block["activation"])
        self.preactivation = preactivation
        inputs, stages, rates = 16, [], drop_rates(drop_path, 3 * n)
        for width in (16, 32, 64):
            blocks = []
            for _ in range(n):
                stride = 2 if inputs != width else 1
                blocks.append(Block(inputs, width, stride, drop_path=next(rates), **block))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if not self.preactivation:
            x = self.activation(self.bn1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        if self.preactivation:  # the last block's sum has not been activated yet
            x = self.activation(self.bn1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


TASK = {"task": "image_classification", "head": "fc", "backbone_first": "conv1"}


@models.register("resnet8", depth=8, **TASK)
@models.register("resnet20", depth=20, **TASK)
@models.register("resnet32", depth=32, **TASK)
@models.register("resnet44", depth=44, **TASK)
@models.register("resnet56", depth=56, **TASK)
@models.register("resnet110", depth=110, **TASK)
def resnet(
    spec: ImageSpec,
    depth: int,
    *,
    shortcut: Literal["A", "B"] = "A",
    preactivation: bool = False,
    activation: Activation = "relu",
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Residual network for small images (He et al. 2015, section 4.2)."""
    block = {"shortcut": shortcut, "preactivation": preactivation, "activation": activation}
    return CifarResNet(depth, spec.channels, spec.num_classes, drop_path, **block)


@models.register("plain8", depth=8, **TASK)
@models.register("plain20", depth=20, **TASK)
@models.register("plain32", depth=32, **TASK)
@models.register("plain44", depth=44, **TASK)
@models.register("plain56", depth=56, **TASK)
@models.register("plain110", depth=110, **TASK)
def plain(spec: ImageSpec, depth: int, *, activation: Activation = "relu") -> nn.Module:
    """The CIFAR ResNet of that depth without its shortcuts, for comparison."""
    block = {"shortcut": "none", "preactivation": False, "activation": activation}
    return CifarResNet(depth, spec.channels, spec.num_classes, 0.0, **block)
