"""``--with-preprocessing``: resize, crop and normalisation as a part of the graph, which then takes plain images.

The resize is written as two matrix products, since every format has those, for any size of
image, where few have an antialiased resize. tests/export/test_export_pixels.py holds it
against the task's own preparation. Shapes: B batch, H height, W width, C channels, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.types import Batch, ImageSpec

if TYPE_CHECKING:
    pass

LAYOUT = "NHWC uint8"


class FromPixels(nn.Module):
    """`model` behind its preparation: uint8 (B,H,W,C) of any H and W -> logits (B,K)."""

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
        if spec.square is not None:
            short = torch.minimum(height, width)
            tall = _resize(x, 2, height, torch.floor((height - short) / 2), short, spec.square)
            wide = _resize(x, 3, width, torch.floor((width - short) / 2), short, spec.square)
            # Training resizes uint8, so to whole grey levels, first along the rows and then along the columns.
            x = (tall @ (x @ wide.transpose(0, 1)).round()).round()
            side = round(spec.square * spec.crop)
            start = (spec.square - side) // 2
            x = x[:, :, start : start + side, start : start + side]
            height, width = _sides(x)
        zero = torch.zeros_like(height)
        x = (
            _resize(x, 2, height, zero, height, spec.height)
            @ x
            @ (_resize(x, 3, width, zero, width, spec.width).transpose(0, 1))
        )
        return self.model((x - self.mean) / self.std)  # type: ignore[no-any-return]


def _sides(x: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width as tensors: numbers of the graph, whatever it is traced with."""
    return torch.ones_like(x[0, 0, :, 0]).sum(), torch.ones_like(x[0, 0, 0, :]).sum()


def _resize(x: Tensor, dim: int, size: Tensor, start: Tensor, length: Tensor, out: int) -> Tensor:
    """(out, size): the weights of an antialiased bilinear resize of the `length` places from `start` on.

    A triangle around each output's centre, as wide as an output where that is more than a place
    (Pillow's and torch's filter).
    """
    place = torch.arange(x.shape[dim], dtype=torch.float32) + 0.5
    scale = length / out
    centre = start + (torch.arange(out, dtype=torch.float32) + 0.5) * scale
    weight = (1 - (place - centre[:, None]).abs() / scale.clamp(min=1)).clamp(min=0)
    inside = ((place > start) & (place < start + length)).float()
    weight = weight * inside
    return weight / weight.sum(1, keepdim=True)


def images(raw: Batch, spec: Any) -> Tensor:
    """The raw batch as plain images (B,H,W,C) uint8, in the model's channels.

    Raises:
        InputError: the data has colour and the model does not see it, or they are no images.
    """
    if not isinstance(spec, ImageSpec):
        raise InputError("--with-preprocessing is for images", f"expected a model of images, not of {spec.kind}")
    x = raw["image"]
    if x.shape[1] == 1:
        x = x.expand(-1, spec.channels, -1, -1)
    if x.shape[1] != spec.channels:
        raise InputError(f"--with-preprocessing: the data has {x.shape[1]} channels", f"the model {spec.channels}")
    return x.permute(0, 2, 3, 1).contiguous()


def described(steps: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """preprocess.json where the steps are in the graph; `size` (H,W) where the format takes no other."""
    outside = {key: steps[key] for key in ("mode", "transparency", "orientation")}
    inside = {key: value for key, value in steps.items() if key not in (*outside, "layout")}
    fixed = "any" if size is None else {"height": size[0], "width": size[1]}
    return {**outside, "size": fixed, "layout": LAYOUT, "in_the_graph": inside}
