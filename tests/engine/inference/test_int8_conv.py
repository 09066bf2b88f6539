"""Answers in int8: near fp32's on samples that the ranges were not taken from, and left where they are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.engine.inference.int8_conv import Int8Conv2d, has_int8, quantize_convolutions
from bigmodel_cli.engine.inference.optimize import fold_batchnorm

needs_int8 = pytest.mark.skipif(not has_int8(torch.device("cpu")), reason="no int8 products on this processor")


@needs_int8
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20"])
def test_a_residual_network_answers_alike(name: str) -> None:
    torch.manual_seed(0)
    model = models.get(name)(ImageSpec(3, 32, 32, tuple("0123456789")))
    for _ in range(3):
        model(torch.randn(16, 3, 32, 32) + 0.5)
    folded = fold_batchnorm(model.eval())
    assert isinstance(folded, torch.fx.GraphModule)
    folded = folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(24, 3, 32, 32) + 0.5
    with torch.inference_mode():
        expected = folded(x)
        small = quantize_convolutions(folded, lambda m: m(x[:8]))
        got, again = small(x), small(x)
        torch.testing.assert_close(folded(x), expected)  # the original is as it was
    assert torch.equal(got, again)
    assert (got - expected)[8:].norm() < 0.1 * expected[8:].norm()
    kinds = [type(m) for m in small.modules()]
    assert Int8Conv2d in kinds and nn.Conv2d not in kinds


@needs_int8
def test_each_way_of_joining_is_right() -> None:
    """A residual used later still, an addend that the convolution reads too or that is spread, one output for two,
    pooling with and without uint8 before it, no ReLU."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))
            self.pool, self.small = nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.a(x))
            z = torch.relu(self.b(y) + y)
            z = self.c(z) + x
            p = self.pool(self.d(self.pool(z)))
            return z + y.mean() + self.e(p).mean() + (self.small(self.a2(y)) + self.e2(y))

    torch.manual_seed(0)
    module = Net().eval()
    module.a2, module.e2 = (nn.Conv2d(8, 8, 1) for _ in range(2))
    net = torch.fx.symbolic_trace(module)
    x = torch.randn(4, 8, 6, 6)
    kept = x.clone()
    with torch.inference_mode():
        expected = net(x)
        small = quantize_convolutions(net, lambda m: m(x))
        got = small(x)
    assert torch.equal(x, kept)
    assert torch.equal(small(x), got)
    assert (got - expected).norm() < 0.03 * expected.norm()
    code = str(small.graph)
    assert "quantized.max_pool2d" in code and "clone" in code
