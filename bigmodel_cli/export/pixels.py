"""``--with-preprocessing``: resize, crop and normalization inside the graph, which then takes raw images.

The resize is written as two matrix products, which every format supports for any image size,
whereas few have an antialiased resize. tests/export/test_export_pixels.py compares it with the
task's own preprocessing. Shapes: B batch, H height, W width, C channels, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.types import Batch, ImageSpec
from bigmodel_cli.export.agreement import LAYOUT


class FromPixels(nn.Module):
    """`model` with its preprocessing: uint8 (B,H,W,C) of any H and W -> logits (B,K)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, spec: ImageSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        for name, values in (("mean", spec.mean or (0.0,)), ("std", spec.std or (1 / 255,))):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1) * 255)

    def forward(self, pixels: Tensor) -> Tensor:
        spec = self.spec
        x = pixels.permute(0, 3, 1, 2).float()
        height, width = _sides(x)
        bicubic = spec.interpolation == "bicubic"
        if spec.square is not None:
            tall = _square_side(x, 2, height, width, spec)
            wide = _square_side(x, 3, width, height, spec)
            # Training resizes in uint8, which rounds to integers, first along the rows and then along the columns.
            x = (tall @ (x @ wide.transpose(0, 1)).round().clamp(0, 255)).round().clamp(0, 255)
            side = round(spec.square * spec.crop)
            start = (spec.square - side) // 2
            x = x[:, :, start : start + side, start : start + side]
            height, width = _sides(x)
        zero = torch.zeros_like(height)
        x = (
            _resize(x, 2, height, zero, height, spec.height, bicubic)
            @ x
            @ (_resize(x, 3, width, zero, width, spec.width, bicubic).transpose(0, 1))
        ).clamp(0, 255)
        return self.model((x - self.mean) / self.std)  # type: ignore[no-any-return]


def _sides(x: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width as tensors, so that a tracer does not record them as constants."""
    return torch.ones_like(x[0, 0, :, 0]).sum(), torch.ones_like(x[0, 0, 0, :]).sum()


def _square_side(x: Tensor, dim: int, side: Tensor, other: Tensor, spec: ImageSpec) -> Tensor:
    """(square, side): the weights that make one side of the centred square; see ``core.images.bicubic_square``."""
    assert spec.square is not None
    short = torch.minimum(side, other)
    if spec.interpolation != "bicubic":
        return _resize(x, dim, side, torch.floor((side - short) / 2), short, spec.square)
    resized = torch.floor(spec.square * side / short)
    scale = side / resized
    start = torch.round((resized - spec.square) / 2) * scale
    return _resize(x, dim, side, start, spec.square * scale, spec.square, True, beyond=True)


def _resize(
    x: Tensor,
    dim: int,
    size: Tensor,
    start: Tensor,
    length: Tensor,
    out: int,
    bicubic: bool = False,
    beyond: bool = False,
) -> Tensor:
    """(out, size): the weights of an antialiased resize of the `length` pixels from `start` on.

    A triangle or cubic filter around each output pixel's centre, scaled to at least one input pixel (as in Pillow and
    torch). With `beyond`, it reaches past those pixels.
    """
    place = torch.arange(x.shape[dim], dtype=torch.float32) + 0.5
    scale = length / out
    centre = start + (torch.arange(out, dtype=torch.float32) + 0.5) * scale
    distance = (place - centre[:, None]).abs() / scale.clamp(min=1)
    weight = _cubic(distance) if bicubic else (1 - distance).clamp(min=0)
    if not beyond:
        weight = weight * ((place > start) & (place < start + length)).float()
    return weight / weight.sum(1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys's cubic kernel with a = -0.5, at distances `x` >= 0 (Keys 1981)."""
    near, far = ((1.5 * x - 2.5) * x) * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def to_pixels(raw: Batch, spec: Any) -> Tensor:
    """The raw batch as images (B,H,W,C) uint8, with the model's number of channels.

    Raises:
        InputError: the channels do not match, or the data is not images.
    """
    if not isinstance(spec, ImageSpec):
        raise InputError("--with-preprocessing is for images", f"expected an image model, not {spec.kind}")
    x = raw["image"]
    if x.shape[1] == 1:
        x = x.expand(-1, spec.channels, -1, -1)
    if x.shape[1] != spec.channels:
        raise InputError(f"--with-preprocessing: the data has {x.shape[1]} channels", f"the model {spec.channels}")
    return x.permute(0, 2, 3, 1).contiguous()


def describe_in_graph(steps: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """preprocess.json for preprocessing in the graph; `size` (H,W) if the format accepts only one."""
    kept = ("mode", "transparency", "orientation", "value_range")
    outside: dict[str, Any] = {key: steps[key] for key in kept if key in steps}
    inside = {key: value for key, value in steps.items() if key not in (*outside, "layout")}
    fixed = "any" if size is None else {"height": size[0], "width": size[1]}
    return {**outside, "size": fixed, "layout": LAYOUT, "in_the_graph": inside}
