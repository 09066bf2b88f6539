"""Convolutions in int8 on a CPU, for answering: four times the products of fp32 where VNNI or AMX multiply.

Weights are int8 with a scale for each output channel, activations uint8 with one scale,
from the range that a few samples showed; sums are int32 (Jacob et al. 2017, arXiv:1712.05877).
Between convolutions that follow each other nothing is turned back to fp32. The kernels are
oneDNN's, the ones that torch.compile calls for quantised models; here nothing is compiled.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bigmodel_cli.engine.machine import cpu_flags

INSTRUCTIONS = {"avx512_vnni", "avx_vnni", "amx_int8"}
RELUS = (F.relu, torch.relu, torch.relu_)
SUMS = (operator.add, operator.iadd, torch.add)


def has_eight_bit(device: torch.device) -> bool:
    """Whether this processor and this torch multiply int8 faster than fp32."""
    return device.type == "cpu" and bool(INSTRUCTIONS & cpu_flags()[1]) and hasattr(torch.ops.onednn, "qconv_prepack")


class EightBitConv2d(nn.Module):
    """`conv`, and the ReLU after it where `relu`, on (B,C,H,W) uint8 whose real values are scale * (q - zero).

    Gives fp32, or uint8 in the terms of `out`, the (scale, zero) that the next one reads.
    """

    def __init__(self, conv: nn.Conv2d, low: float, high: float) -> None:
        super().__init__()
        self.scale = max(high - low, 1e-8) / 255
        self.zero = min(max(round(-low / self.scale), 0), 255)
        self.relu = False
        self.out: tuple[float, int] | None = None
        self.how = [list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups]
        self.bias = conv.bias
        weight = conv.weight.detach()
        self.scales = weight.abs().amax((1, 2, 3)).clamp(min=1e-12) / 127
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        whole = (weight / self.scales.view(-1, 1, 1, 1)).round().to(torch.int8)
        self.packed = torch.ops.onednn.qconv_prepack(whole, self.scales, self.scale, self.zero, *self.how, None)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """`added` (fp32) is what the convolution adds itself to, before the ReLU: changed in place, and given back."""
        scale, zero = self.out or (1.0, 0)
        kind = torch.float32 if self.out is None else torch.uint8
        given: tuple[Any, ...] = (x, self.scale, self.zero, self.packed, self.scales, self.zeros, self.bias, *self.how)
        then = "relu" if self.relu else "none"
        if added is not None:
            given = (*given[:6], added, *given[6:])
            given += (1.0, 0, torch.float32, 1.0, 0, "sum", 1.0)
            return torch.ops.onednn.qconv2d_pointwise.binary(*given, then, [], "")  # type: ignore[no-any-return]
        return torch.ops.onednn.qconv2d_pointwise(*given, scale, zero, kind, then, [], "")  # type: ignore[no-any-return]


def in_eight_bit(folded: fx.GraphModule, run: Callable[[nn.Module], object]) -> fx.GraphModule:
    """A copy of `folded` whose plain convolutions are in int8; `run` has it answer what its ranges are taken from."""
    model = copy.deepcopy(folded)
    ranges = _ranges(model, run)
    graph = model.graph
    for node in [n for n in graph.nodes if n.op == "call_module" and n.target in ranges]:
        conv = EightBitConv2d(model.get_submodule(node.target), *ranges[node.target])  # type: ignore[arg-type]
        model.set_submodule(node.target, conv)
        node = _with_sum(model, graph, node)
        user = next(iter(node.users))
        if len(node.users) == 1 and _is_relu(model, user):
            conv.relu = True
            user.replace_all_uses_with(node)
            graph.erase_node(user)
    _hand_over(model, graph)
    graph.lint()
    model.recompile()
    return model


def _with_sum(model: fx.GraphModule, graph: fx.Graph, node: fx.Node) -> fx.Node:
    """`node`, a convolution, with the residual that it alone is added to as one; itself where that cannot be.

    The sum is made in the other's memory: it must be a tensor of its own, and dead afterwards.
    """
    total = next(iter(node.users))
    if len(node.users) > 1 or total.target not in SUMS or len(total.args) != 2 or total.kwargs:
        return node
    other = total.args[total.args[0] is node]
    if not isinstance(other, fx.Node) or other is node or not all(user <= total for user in other.users):
        return node
    if not _is_relu(model, other) and _eight_bit(model, other) is None and not _is_conv(model, other):
        return node
    with graph.inserting_before(total):
        both = graph.call_module(str(node.target), (node.args[0], other))
    total.replace_all_uses_with(both)
    graph.erase_node(total)
    graph.erase_node(node)
    return both


def _is_conv(model: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.Conv2d)


def _hand_over(model: fx.GraphModule, graph: fx.Graph) -> None:
    """Give every int8 convolution uint8: from the one before it where that serves nobody else, or quantised."""
    for node in list(graph.nodes):
        users = [user for user in node.users if _eight_bit(model, user) and node not in user.args[1:]]
        if not users:
            continue
        first = _eight_bit(model, users[0])
        assert first is not None
        before = _eight_bit(model, node)
        if before is not None and len(node.args) == 1 and len(users) == len(node.users):
            before.out = (first.scale, first.zero)
            continue
        with graph.inserting_after(node):
            small = graph.call_function(quantised, (node, first.scale, first.zero))
        for user in users:
            user.replace_input_with(node, small)


def quantised(x: Tensor, scale: float, zero: int) -> Tensor:
    """fp32 to the nearest uint8 (a half up), channels-last as oneDNN wants it."""
    x = x.contiguous(memory_format=torch.channels_last)
    return x.mul(1 / scale).add_(zero + 0.5).clamp_(0, 255).to(torch.uint8)


def _ranges(model: fx.GraphModule, run: Callable[[nn.Module], object]) -> dict[str, tuple[float, float]]:
    """By the name of each plain convolution, the least and the largest number that goes into it; 0 is in between."""
    found: dict[str, tuple[float, float]] = {}

    def look(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            low, high = (v.item() for v in inputs[0].aminmax())
            before = found.get(name, (0.0, 0.0))
            found[name] = (min(low, before[0]), max(high, before[1]))

        return hook

    plain = {n: m for n, m in model.named_modules() if type(m) is nn.Conv2d and m.padding_mode == "zeros"}
    hooks = [m.register_forward_pre_hook(look(n)) for n, m in plain.items() if not isinstance(m.padding, str)]
    try:
        run(model)
    finally:
        for handle in hooks:
            handle.remove()
    return found


def _eight_bit(model: fx.GraphModule, node: fx.Node) -> EightBitConv2d | None:
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, EightBitConv2d) else None


def _is_relu(model: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))) is nn.ReLU
    return (node.op == "call_function" and node.target in RELUS) or (node.op, node.target) == ("call_method", "relu")
