"""Residual networks (He et al. 2015, "Deep Residual Learning for Image Recognition").

Each block learns what to *add* to its input, y = F(x) + x, so that added depth never
has to learn the identity. State-dict keys are torchvision's, so its weights load
strictly. Each activation module is called once, so that quantization can observe
it. Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.models.layers.activations import Activation
from bigmodel_cli.models.layers.activations import activation as act

Stem = Literal["auto", "small", "strided", "imagenet"]
"""small: 3x3, stride 1; strided: 3x3, stride 2; imagenet: 7x7, stride 2, then pooling with stride 2."""


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """A 1x1 projection where the shapes differ (option B in the paper); None stands for the identity."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drop the branch of each sample with probability p.

    Branches that are kept are divided by 1 - p, so evaluation needs no change. (B, ...) -> (B, ...).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        keep = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        return f"{self.p:.3f}"


def drop_rates(drop_path: float, blocks: int) -> Iterator[float]:
    """The drop rate of each block, rising linearly to `drop_path` at the last."""
    return (drop_path * (i + 1) / blocks for i in range(blocks))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: (B, inputs, H, W) -> (B, width, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, activation: Activation, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.activation1 = act(activation, inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.drop_path = DropPath(drop_path)
        self.downsample = projection(inputs, width, stride)
        self.activation2 = act(activation, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation1(self.bn1(self.conv1(x)))
        y = self.drop_path(self.bn2(self.conv2(y)))
        return self.activation2(y + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, stride on the 3x3 (v1.5): (B, inputs, H, W) -> (B, 4 width, ...)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, activation: Activation, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.activation1 = act(activation, inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.activation2 = act(activation, inplace=True)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.drop_path = DropPath(drop_path)
        self.downsample = projection(inputs, 4 * width, stride)
        self.activation3 = act(activation, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation1(self.bn1(self.conv1(x)))
        y = self.activation2(self.bn2(self.conv2(y)))
        y = self.drop_path(self.bn3(self.conv3(y)))
        return self.activation3(y + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """(B, C, H, W) -> (B, K)."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        channels: int,
        num_classes: int,
        stem: Stem,
        activation: Activation,
        zero_init_residual: bool,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        else:
            self.conv1 = nn.Conv2d(channels, 64, 3, 1 if stem == "small" else 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.activation = act(activation, inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        inputs, stages, rates = 64, [], drop_rates(drop_path, sum(depths))
        for i, depth in enumerate(depths):
            width, blocks = 64 * 2**i, []
            for j in range(depth):
                blocks.append(block(inputs, width, 2 if i > 0 and j == 0 else 1, activation, next(rates)))
                inputs = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        self._initialise(zero_init_residual)

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            # Each block starts as the identity (Goyal et al. 2017, section 5.1).
            elif zero_init_residual and isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
            elif zero_init_residual and isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.activation(self.bn1(self.conv1(x))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def published_spec(spec: ImageSpec, options: Mapping[str, Any]) -> ImageSpec | None:
    """`spec` with ImageNet's mean and deviation, as torchvision's weights expect; None without their stem."""
    published = chosen_stem(spec, options["stem"]) == "imagenet"
    return spec.with_(channels=3, **IMAGENET) if published else None


def chosen_stem(spec: ImageSpec, stem: Stem) -> Stem:
    """`stem`, or what auto stands for: downsample as far as possible while layer1 still sees maps of 8 x 8."""
    side = min(spec.height, spec.width)
    return stem if stem != "auto" else "small" if side < 24 else "strided" if side <= 64 else "imagenet"


TASK = {"task": "image_classification", "head": "fc", "backbone_first": "conv1", "published": published_spec}


@models.register("resnet18", block=BasicBlock, depths=(2, 2, 2, 2), **TASK)
@models.register("resnet34", block=BasicBlock, depths=(3, 4, 6, 3), **TASK)
@models.register("resnet50", block=Bottleneck, depths=(3, 4, 6, 3), **TASK)
@models.register("resnet101", block=Bottleneck, depths=(3, 4, 23, 3), **TASK)
@models.register("resnet152", block=Bottleneck, depths=(3, 8, 36, 3), **TASK)
def resnet(
    spec: ImageSpec,
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, int, int, int],
    *,
    stem: Stem = "auto",
    activation: Activation = "relu",
    zero_init_residual: bool = True,
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Residual network for photos, with bottleneck blocks from 50 layers on (He et al. 2015).

    `stem` auto downsamples as far as possible while layer1 still sees maps of at least 8 x 8.
    """
    stem = chosen_stem(spec, stem)
    return ResNet(block, depths, spec.channels, spec.num_classes, stem, activation, zero_init_residual, drop_path)
