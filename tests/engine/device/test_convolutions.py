"""The backward passes of own depthwise convolutions are those of the convolutions they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bigmodel_cli.engine.device.convolutions import own_convolutions


class Padded(nn.Conv2d):
    """Pads by itself, more on one side, as networks from TensorFlow do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(x, (1, 2, 1, 2))
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


def gradients(layer: nn.Module, x: torch.Tensor, low: bool) -> list[torch.Tensor]:
    """The output, and the gradients of the input and of the parameters, by the sum of squares."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        y = layer(x)
    y.float().square().sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())]


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "kind"), [
    (5, 1, nn.Conv2d), (5, 2, nn.Conv2d), (7, 1, nn.Conv2d), (5, 2, Padded), (4, 1, Padded),
    (7, (1, 2), nn.Conv2d), (6, 2, Padded), (9, 3, nn.Conv2d), (5, 4, nn.Conv2d), ((3, 5), 1, nn.Conv2d),
])  # fmt: skip
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_the_convolution(kernel, stride, kind, bias, low) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
    plain = nn.Sequential(kind(16, 16, kernel, stride, (high // 2, wide // 2), groups=16, bias=bias))
    quick = copy.deepcopy(plain)
    own_convolutions(quick, True)
    assert type(quick[0]) is not kind
    x = torch.randn(3, 16, 13, 17).contiguous(memory_format=torch.channels_last)
    expected = gradients(copy.deepcopy(plain).double(), x.double(), False)
    found, theirs = gradients(quick, x, low), gradients(plain, x, low)
    for a, b, exact in zip(found, theirs, expected, strict=True):
        assert a.dtype == b.dtype
        error, usual = (torch.linalg.vector_norm(g.double() - exact) for g in (a, b))
        assert error <= 2 * usual + 1e-6 * torch.linalg.vector_norm(exact)
    own_convolutions(quick, False)
    assert type(quick[0]) is kind


def test_other_convolutions_stay_and_outputs_are_equal_to_the_bit() -> None:
    layers = [nn.Conv2d(8, 8, 5, groups=4), nn.Conv2d(8, 16, 5, groups=8), nn.Conv2d(8, 8, 3, groups=8)]
    own_convolutions(model := nn.Sequential(*layers), True)
    assert all(type(m) is nn.Conv2d for m in model)
    own_convolutions(model := nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, dilation=2, groups=8)), True)
    x = torch.randn(2, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    plain = nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, dilation=2, groups=8))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), plain(x))
    assert torch.equal(model(x.contiguous()), plain(x.contiguous()))
