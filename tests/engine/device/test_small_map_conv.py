"""The matrix product over small maps is the convolution it stands for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bigmodel_cli.engine.device.small_map_conv import SmallMapConv2d, dense_small_maps


@pytest.mark.parametrize("sides", [(4, 4), (4, 2), (1, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_kernel_of_the_size_of_its_map_is_a_linear_layer(sides: tuple[int, int], channels_last: bool) -> None:
    torch.manual_seed(0)
    form = torch.channels_last if channels_last else torch.contiguous_format
    plain = nn.Conv2d(6, 9, sides).double().to(memory_format=form)  # type: ignore[call-overload]
    quick = copy.deepcopy(plain)
    dense_small_maps(nn.Sequential(quick), True)
    xs = [torch.randn(5, 6, *sides, dtype=torch.double).contiguous(memory_format=form) for _ in range(2)]
    xs[1].copy_(xs[0])
    ys = [layer(x.requires_grad_()) for layer, x in zip((plain, quick), xs, strict=True)]
    assert "Convolution" not in type(ys[1].grad_fn.next_functions[0][0]).__name__ + type(ys[1].grad_fn).__name__
    torch.testing.assert_close(ys[1], ys[0])
    for y in ys:
        y.square().sum().backward()
    torch.testing.assert_close(xs[1].grad, xs[0].grad)
    assert quick.weight.grad.is_contiguous(memory_format=form)  # or the optimizer would work on two layouts
    for a, b in zip(plain.parameters(), quick.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad)


@pytest.mark.parametrize(("kernel", "sides"), [(3, (1, 1)), (3, (2, 2)), (3, (1, 2)), (5, (3, 3)), (7, (4, 2))])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_convolution(
    kernel: int, sides: tuple[int, int], stride: int, bias: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 9, kernel, stride, kernel // 2, bias=bias).double()
    quick = copy.deepcopy(plain)
    dense_small_maps(quick_parent := nn.Sequential(quick), True)
    assert type(quick_parent[0]) is SmallMapConv2d
    xs = [torch.randn(5, 6, *sides, dtype=torch.double).requires_grad_() for _ in range(2)]
    xs[1].data.copy_(xs[0].data)
    ys = [layer(x) for layer, x in zip((plain, quick), xs, strict=True)]
    torch.testing.assert_close(ys[1], ys[0])
    push = torch.randn_like(ys[0])
    for y in ys:
        y.backward(push)
    torch.testing.assert_close(xs[1].grad, xs[0].grad)
    for a, b in zip(plain.parameters(), quick.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad)


def test_larger_maps_other_convolutions_and_the_way_back() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
    )  # fmt: skip
    names, x = list(model.state_dict()), torch.randn(2, 4, 8, 8)
    before = model(x)
    dense_small_maps(model, True)
    assert [type(m) is SmallMapConv2d for m in model] == [True, True, False, True, False, False]
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == names
    dense_small_maps(model, False)
    assert all(type(m) is nn.Conv2d for m in model)


def test_autocast_gives_bf16_and_fp32_gradients() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))
    dense_small_maps(model, True)
    x = torch.randn(4, 8, 2, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert model[0].weight.grad.dtype == torch.float32
    torch.testing.assert_close(
        y.float(), nn.functional.conv2d(x, model[0].weight, model[0].bias, padding=1), atol=0.05, rtol=0.05
    )
