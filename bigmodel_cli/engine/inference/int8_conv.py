"""Convolutions in int8 on a CPU, for answering: four times the products of fp32 where VNNI or AMX multiply.

Weights are int8 with a scale for each output channel, activations uint8 with one scale,
from the range that a few samples showed; sums are int32 (Jacob et al. 2017, arXiv:1712.05877).
From the first convolution to the last nothing is turned back to fp32: ReLUs and residuals are
part of the convolution before them, and max pooling takes uint8. The kernels are
oneDNN's, the ones that torch.compile calls for quantised models; here nothing is compiled.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bigmodel_cli.engine.device.hardware import cpu_flags

WIDE = 64  # input channels: with a ResNet-20's 16 to 64 int8 was no quicker than fp32
INSTRUCTIONS = {"avx512_vnni", "avx_vnni", "amx_int8"}
RELUS = (F.relu, torch.relu, torch.relu_)
SUMS = (operator.add, operator.iadd, torch.add)

Grid = tuple[float, int]
"""Scale and zero of a uint8 tensor, whose real values are scale * (q - zero)."""


@dataclass(frozen=True)
class Seen:
    """What a tensor was like: its shape, and its range, which 0 is part of."""

    shape: torch.Size
    low: float
    high: float

    @property
    def grid(self) -> Grid:
        """The grid that the numbers of the range fall on best."""
        scale = max(self.high - self.low, 1e-8) / 255
        return scale, min(max(round(-self.low / scale), 0), 255)


def has_int8(device: torch.device) -> bool:
    """Whether this processor and this torch multiply int8 faster than fp32."""
    return device.type == "cpu" and bool(INSTRUCTIONS & cpu_flags()[1]) and hasattr(torch.ops.onednn, "qconv_prepack")


def is_wide(model: nn.Module) -> bool:
    """Whether most convolutions of `model` have channels enough for int8 to be much quicker."""
    wide = [m.in_channels // m.groups >= WIDE for m in model.modules() if isinstance(m, nn.Conv2d)]
    return 2 * sum(wide) > len(wide)


class Int8Conv2d(nn.Module):
    """`conv` on (B,C,H,W) uint8, and what was made one with it: a sum, then a ReLU.

    Gives fp32; or uint8, where `out` is the grid of it.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.relu = False
        self.out: Grid | None = None
        self.added: Grid = (1.0, 0)
        self.how = [list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups]
        self.bias = conv.bias
        self.weight = conv.weight.detach()
        self.scales = self.weight.abs().amax((1, 2, 3)).clamp(min=1e-12) / 127
        self.zeros = torch.zeros(len(self.weight), dtype=torch.int64)

    def pack(self, grid: Grid) -> None:
        """Make the weights what the kernel reads, for inputs on this grid."""
        self.grid = grid
        whole = (self.weight / self.scales.view(-1, 1, 1, 1)).round().to(torch.int8)
        self.packed = torch.ops.onednn.qconv_prepack(whole, self.scales, *grid, *self.how, None)
        del self.weight

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """`added` (uint8) is what the convolution adds itself to, before the ReLU: changed in place, and given back."""
        form = (*(self.out or (1.0, 0)), torch.float32 if self.out is None else torch.uint8)
        then: tuple[Any, ...] = ("relu" if self.relu else "none", [], "")
        given: tuple[Any, ...] = (x, *self.grid, self.packed, self.scales, self.zeros)
        kernel: Any = torch.ops.onednn.qconv2d_pointwise
        if added is None:
            y: Tensor = kernel(*given, self.bias, *self.how, *form, *then)
        else:
            y = kernel.binary(*given, added, self.bias, *self.how, *form, *self.added, "sum", 1.0, *then)
        return y


def to_int8(folded: fx.GraphModule, run: Callable[[nn.Module], object]) -> fx.GraphModule:
    """A copy of `folded` whose plain convolutions are in int8; `run` has it answer what its ranges are taken from."""
    model = copy.deepcopy(folded)
    seen = _seen(model, run)
    graph = model.graph
    calls = Counter(node.target for node in graph.nodes)
    convs = [
        n for n in graph.nodes if calls[n.target] == 1 and _is_plain(model, n) and n.all_input_nodes[0].name in seen
    ]
    for node in convs:
        model.set_submodule(str(node.target), Int8Conv2d(model.get_submodule(str(node.target))))  # type: ignore[arg-type]
    for node in convs:
        _join(model, graph, node, seen)
    _hand_over(model, graph, seen)
    graph.lint()
    model.recompile()
    return model


def _join(model: fx.GraphModule, graph: fx.Graph, node: fx.Node, seen: dict[str, Seen]) -> None:
    """Make `node`, a convolution, one with the sum and the ReLU behind it, where it serves them alone."""
    total = _only_user(node)
    if total is not None and total.target in SUMS and len(total.args) == 2 and not total.kwargs:
        other = total.args[total.args[0] is node]
        if (
            isinstance(other, fx.Node)
            and other is not node
            and _makes_small(model, other)
            and seen[other.name].shape == seen[total.name].shape  # not spread over it
        ):
            node = _in_place_of(graph, total, node, (node.args[0], other), seen)
    then = _only_user(node)
    if then is not None and _is_relu(model, then):
        _eight_bit(model, node).relu = True  # type: ignore[union-attr]
        _in_place_of(graph, then, node, node.args, seen)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _in_place_of(graph: fx.Graph, old: fx.Node, conv: fx.Node, args: Any, seen: dict[str, Seen]) -> fx.Node:
    """A call of `conv` where `old`, which only `conv` went into, was; neither is left."""
    with graph.inserting_before(old):
        new = graph.call_module(str(conv.target), args)
    seen[new.name] = seen[old.name]
    old.replace_all_uses_with(new)
    graph.erase_node(old)
    graph.erase_node(conv)
    return new


def _hand_over(model: fx.GraphModule, graph: fx.Graph, seen: dict[str, Seen]) -> None:
    """Give every int8 convolution uint8, from what is before it where that can make it; and fp32 to all else."""
    grids: dict[fx.Node, Grid] = {}  # of each node that makes uint8
    for node in list(graph.nodes):
        conv, inputs = _eight_bit(model, node), [arg for arg in node.args if isinstance(arg, fx.Node)]
        if conv is not None:
            if inputs[0] not in grids:
                grid = seen[inputs[0].name].grid
                inputs[0] = _quantise(model, graph, inputs[0], grid)
                grids[inputs[0]] = grid
            conv.pack(grids[inputs[0]])
            if len(inputs) > 1:
                conv.added = grids[inputs[1]]
                grids[_own_addend(graph, node, *inputs)] = conv.added
            if len(inputs) > 1 or _is_read_small(model, node):
                grids[node] = conv.out = seen[node.name].grid
        elif _is_pool(model, node) and inputs[0] in grids and _is_read_small(model, node):
            grids[_pool(model, graph, node, inputs[0])] = grids[inputs[0]]
    for node, grid in grids.items():
        readers = [user for user in node.users if user not in grids and _eight_bit(model, user) is None]
        if readers:
            with graph.inserting_after(node):
                real = graph.call_function(dequantised, (node, *grid))
            for user in readers:
                user.replace_input_with(node, real)


def _quantise(model: fx.GraphModule, graph: fx.Graph, x: fx.Node, grid: Grid) -> fx.Node:
    """`x` quantised, once for all the int8 convolutions that read it."""
    with graph.inserting_after(x):
        small = graph.call_function(quantised, (x, *grid))
    for user in [user for user in x.users if _eight_bit(model, user)]:
        user.replace_input_with(x, small)
    return small


def _own_addend(graph: fx.Graph, node: fx.Node, x: fx.Node, addend: fx.Node) -> fx.Node:
    """What `node` makes its sum in: the addend, or a copy where the addend is read then or later."""
    if addend is not x and all(user <= node for user in addend.users):
        return addend
    with graph.inserting_before(node):
        copied = graph.call_function(torch.clone, (addend,))
    node.args = (x, copied)
    return copied


def _pool(model: fx.GraphModule, graph: fx.Graph, node: fx.Node, x: fx.Node) -> fx.Node:
    """The pooling `node` of uint8, which keeps its grid."""
    pool: Any = model.get_submodule(str(node.target))
    how = [pool.kernel_size, pool.stride, pool.padding, pool.dilation]
    pairs = [[v, v] if isinstance(v, int) else list(v) for v in how]
    with graph.inserting_before(node):
        new = graph.call_function(torch.ops.quantized.max_pool2d, (x, *pairs, pool.ceil_mode))
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return new


def quantised(x: Tensor, scale: float, zero: int) -> Tensor:
    """fp32 to the nearest uint8 (a half up), channels-last as oneDNN wants it."""
    x = x.contiguous(memory_format=torch.channels_last)
    return x.mul(1 / scale).add_(zero + 0.5).clamp_(0, 255).to(torch.uint8)


def dequantised(x: Tensor, scale: float, zero: int) -> Tensor:
    """uint8 to fp32."""
    return x.float().sub_(zero).mul_(scale)


def _seen(model: fx.GraphModule, run: Callable[[nn.Module], object]) -> dict[str, Seen]:
    """By the name of each node that makes (B,C,H,W) numbers, what these are like while `run` has `model` answer."""
    found: dict[str, Seen] = {}

    class Watched(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor) and result.dim() == 4 and result.is_floating_point():
                low, high = (v.item() for v in result.aminmax())
                before = found.get(n.name, Seen(result.shape, 0.0, 0.0))
                found[n.name] = Seen(result.shape, min(low, before.low), max(high, before.high))
            return result

    model.forward = lambda *inputs: Watched(model).run(*inputs)
    try:
        run(model)
    finally:
        del model.forward
    return found


def _eight_bit(model: fx.GraphModule, node: fx.Node) -> Int8Conv2d | None:
    module = _module(model, node)
    return module if isinstance(module, Int8Conv2d) else None


def _module(model: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_plain(model: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` calls a convolution that the kernel can do."""
    conv = _module(model, node)
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain and len(node.args) == 1 and not node.kwargs


def _is_pool(model: fx.GraphModule, node: fx.Node) -> bool:
    pool = _module(model, node)
    return type(pool) is nn.MaxPool2d and not pool.return_indices and len(node.args) == 1


def _is_read_small(model: fx.GraphModule, node: fx.Node) -> bool:
    """Whether somebody reads what `node` makes as uint8."""
    return any(
        _eight_bit(model, user) is not None or (_is_pool(model, user) and _is_read_small(model, user))
        for user in node.users
    )


def _makes_small(model: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` can make uint8: an int8 convolution, or max pooling of one."""
    pools = _is_pool(model, node) and _makes_small(model, node.all_input_nodes[0])
    return pools or _eight_bit(model, node) is not None


def _is_relu(model: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(_module(model, node)) is nn.ReLU
    return (node.op == "call_function" and node.target in RELUS) or (node.op, node.target) == ("call_method", "relu")
