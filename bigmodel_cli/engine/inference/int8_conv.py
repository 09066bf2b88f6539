"""int8 convolutions for inference on a CPU: four times the throughput of fp32 with VNNI or AMX instructions.

Weights are int8 with a scale per output channel. Activations are uint8 with one scale, from the range observed
on a few samples. Sums are int32 (Jacob et al. 2017, arXiv:1712.05877). Activations stay uint8 from the first
convolution to the last: ReLUs and residual additions are fused into the convolution before them, and max
pooling takes uint8. The kernels are oneDNN's, which torch.compile also calls for quantized models; here nothing
is compiled.
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

from bigmodel_cli.engine.device.hardware import cpu_info

MIN_CHANNELS = 64  # input channels: with a ResNet-20's 16 to 64, int8 was no faster than fp32
INSTRUCTIONS = {"avx512_vnni", "avx_vnni", "amx_int8"}
RELUS = (F.relu, torch.relu, torch.relu_)
SUMS = (operator.add, operator.iadd, torch.add)

QuantParams = tuple[float, int]
"""The scale and zero point of a uint8 tensor, whose real values are scale * (q - zero point)."""


@dataclass(frozen=True)
class ActivationRange:
    """The shape and the observed range of a tensor; the range includes 0."""

    shape: torch.Size
    low: float
    high: float

    @property
    def qparams(self) -> QuantParams:
        """The quantization parameters that cover the range."""
        scale = max(self.high - self.low, 1e-8) / 255
        return scale, min(max(round(-self.low / scale), 0), 255)


def has_int8(device: torch.device) -> bool:
    """Whether this processor and this torch run int8 convolutions faster than fp32."""
    return device.type == "cpu" and bool(INSTRUCTIONS & cpu_info()[1]) and hasattr(torch.ops.onednn, "qconv_prepack")


def is_wide_enough(model: nn.Module) -> bool:
    """Whether most convolutions of `model` have enough channels for int8 to be much faster."""
    wide = [m.in_channels // m.groups >= MIN_CHANNELS for m in model.modules() if isinstance(m, nn.Conv2d)]
    return 2 * sum(wide) > len(wide)


class Int8Conv2d(nn.Module):
    """`conv` on (B,C,H,W) uint8, with an addition and a ReLU fused into it.

    The output is fp32, or uint8 with the parameters `out`.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.relu = False
        self.out: QuantParams | None = None
        self.addend: QuantParams = (1.0, 0)
        self.conv_args = [list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups]
        self.bias = conv.bias
        self.weight = conv.weight.detach()
        self.scales = self.weight.abs().amax((1, 2, 3)).clamp(min=1e-12) / 127
        self.zeros = torch.zeros(len(self.weight), dtype=torch.int64)

    def pack(self, qparams: QuantParams) -> None:
        """Quantize and pack the weights for inputs with these parameters."""
        self.qparams = qparams
        quantized_weight = (self.weight / self.scales.view(-1, 1, 1, 1)).round().to(torch.int8)
        self.packed = torch.ops.onednn.qconv_prepack(quantized_weight, self.scales, *qparams, *self.conv_args, None)
        del self.weight

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """Convolve `x`; with `addend` (uint8) the sum is written into it, before the ReLU, and returned."""
        output_args = (*(self.out or (1.0, 0)), torch.float32 if self.out is None else torch.uint8)
        post_op: tuple[Any, ...] = ("relu" if self.relu else "none", [], "")
        input_args: tuple[Any, ...] = (x, *self.qparams, self.packed, self.scales, self.zeros)
        kernel: Any = torch.ops.onednn.qconv2d_pointwise
        if addend is None:
            y: Tensor = kernel(*input_args, self.bias, *self.conv_args, *output_args, *post_op)
        else:
            y = kernel.binary(
                *input_args, addend, self.bias, *self.conv_args, *output_args, *self.addend, "sum", 1.0, *post_op
            )
        return y


def quantize_convolutions(folded: fx.GraphModule, run: Callable[[nn.Module], object]) -> fx.GraphModule:
    """A copy of `folded` with its plain convolutions in int8; `run` calls it on calibration data."""
    model = copy.deepcopy(folded)
    ranges = _observe(model, run)
    graph = model.graph
    calls = Counter(node.target for node in graph.nodes)
    convs = [
        n for n in graph.nodes if calls[n.target] == 1 and _is_plain(model, n) and n.all_input_nodes[0].name in ranges
    ]
    for node in convs:
        model.set_submodule(str(node.target), Int8Conv2d(model.get_submodule(str(node.target))))  # type: ignore[arg-type]
    for node in convs:
        _fuse_post_ops(model, graph, node, ranges)
    _connect_uint8(model, graph, ranges)
    graph.lint()
    model.recompile()
    return model


def _fuse_post_ops(model: fx.GraphModule, graph: fx.Graph, node: fx.Node, ranges: dict[str, ActivationRange]) -> None:
    """Fuse the addition and the ReLU after the convolution `node` into it, where they are its only users."""
    total = _only_user(node)
    if total is not None and total.target in SUMS and len(total.args) == 2 and not total.kwargs:
        other = total.args[total.args[0] is node]
        if (
            isinstance(other, fx.Node)
            and other is not node
            and _can_output_uint8(model, other)
            and ranges[other.name].shape == ranges[total.name].shape  # not broadcast
        ):
            node = _replace_with_call(graph, total, node, (node.args[0], other), ranges)
    post_op = _only_user(node)
    if post_op is not None and _is_relu(model, post_op):
        _int8_conv(model, node).relu = True  # type: ignore[union-attr]
        _replace_with_call(graph, post_op, node, node.args, ranges)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _replace_with_call(
    graph: fx.Graph, old: fx.Node, conv: fx.Node, args: Any, ranges: dict[str, ActivationRange]
) -> fx.Node:
    """Replace `old`, the only user of `conv`, and `conv` itself by a new call of the convolution."""
    with graph.inserting_before(old):
        new = graph.call_module(str(conv.target), args)
    ranges[new.name] = ranges[old.name]
    old.replace_all_uses_with(new)
    graph.erase_node(old)
    graph.erase_node(conv)
    return new


def _connect_uint8(model: fx.GraphModule, graph: fx.Graph, ranges: dict[str, ActivationRange]) -> None:
    """Feed every int8 convolution uint8, directly from its producer where possible, and all other nodes fp32."""
    qparams_of: dict[fx.Node, QuantParams] = {}  # by node with uint8 output
    for node in list(graph.nodes):
        conv, inputs = _int8_conv(model, node), [arg for arg in node.args if isinstance(arg, fx.Node)]
        if conv is not None:
            if inputs[0] not in qparams_of:
                qparams = ranges[inputs[0].name].qparams
                inputs[0] = _insert_quantize(model, graph, inputs[0], qparams)
                qparams_of[inputs[0]] = qparams
            conv.pack(qparams_of[inputs[0]])
            if len(inputs) > 1:
                conv.addend = qparams_of[inputs[1]]
                qparams_of[_writable_addend(graph, node, *inputs)] = conv.addend
            if len(inputs) > 1 or _has_uint8_reader(model, node):
                qparams_of[node] = conv.out = ranges[node.name].qparams
        elif _is_pool(model, node) and inputs[0] in qparams_of and _has_uint8_reader(model, node):
            qparams_of[_pool(model, graph, node, inputs[0])] = qparams_of[inputs[0]]
    for node, qparams in qparams_of.items():
        readers = [user for user in node.users if user not in qparams_of and _int8_conv(model, user) is None]
        if readers:
            with graph.inserting_after(node):
                dequantized = graph.call_function(dequantize, (node, *qparams))
            for user in readers:
                user.replace_input_with(node, dequantized)


def _insert_quantize(model: fx.GraphModule, graph: fx.Graph, x: fx.Node, qparams: QuantParams) -> fx.Node:
    """Quantize `x` once for all int8 convolutions that read it."""
    with graph.inserting_after(x):
        quantized = graph.call_function(quantize, (x, *qparams))
    for user in [user for user in x.users if _int8_conv(model, user)]:
        user.replace_input_with(x, quantized)
    return quantized


def _writable_addend(graph: fx.Graph, node: fx.Node, x: fx.Node, addend: fx.Node) -> fx.Node:
    """The tensor that `node` writes its sum into: the addend, or a copy where the addend is still read later."""
    if addend is not x and all(user <= node for user in addend.users):
        return addend
    with graph.inserting_before(node):
        copied = graph.call_function(torch.clone, (addend,))
    node.args = (x, copied)
    return copied


def _pool(model: fx.GraphModule, graph: fx.Graph, node: fx.Node, x: fx.Node) -> fx.Node:
    """Replace the pooling `node` by one of uint8, which keeps the quantization parameters."""
    pool: Any = model.get_submodule(str(node.target))
    conv_args = [pool.kernel_size, pool.stride, pool.padding, pool.dilation]
    pairs = [[v, v] if isinstance(v, int) else list(v) for v in conv_args]
    with graph.inserting_before(node):
        new = graph.call_function(torch.ops.quantized.max_pool2d, (x, *pairs, pool.ceil_mode))
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return new


def quantize(x: Tensor, scale: float, zero: int) -> Tensor:
    """fp32 to the nearest uint8 (halves round up), channels-last as oneDNN expects it."""
    x = x.contiguous(memory_format=torch.channels_last)
    return x.mul(1 / scale).add_(zero + 0.5).clamp_(0, 255).to(torch.uint8)


def dequantize(x: Tensor, scale: float, zero: int) -> Tensor:
    """uint8 to fp32."""
    return x.float().sub_(zero).mul_(scale)


def _observe(model: fx.GraphModule, run: Callable[[nn.Module], object]) -> dict[str, ActivationRange]:
    """The observed range of each (B,C,H,W) floating-point output, by node name, while `run` calls `model`."""
    found: dict[str, ActivationRange] = {}

    class Observer(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor) and result.dim() == 4 and result.is_floating_point():
                low, high = (v.item() for v in result.aminmax())
                before = found.get(n.name, ActivationRange(result.shape, 0.0, 0.0))
                found[n.name] = ActivationRange(result.shape, min(low, before.low), max(high, before.high))
            return result

    model.forward = lambda *inputs: Observer(model).run(*inputs)
    try:
        run(model)
    finally:
        del model.forward
    return found


def _int8_conv(model: fx.GraphModule, node: fx.Node) -> Int8Conv2d | None:
    module = _module(model, node)
    return module if isinstance(module, Int8Conv2d) else None


def _module(model: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_plain(model: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` calls a convolution that the kernel supports."""
    conv = _module(model, node)
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain and len(node.args) == 1 and not node.kwargs


def _is_pool(model: fx.GraphModule, node: fx.Node) -> bool:
    pool = _module(model, node)
    return type(pool) is nn.MaxPool2d and not pool.return_indices and len(node.args) == 1


def _has_uint8_reader(model: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a user of `node` reads its output as uint8."""
    return any(
        _int8_conv(model, user) is not None or (_is_pool(model, user) and _has_uint8_reader(model, user))
        for user in node.users
    )


def _can_output_uint8(model: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` can output uint8: an int8 convolution, or max pooling of one."""
    pools = _is_pool(model, node) and _can_output_uint8(model, node.all_input_nodes[0])
    return pools or _int8_conv(model, node) is not None


def _is_relu(model: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(_module(model, node)) is nn.ReLU
    return (node.op == "call_function" and node.target in RELUS) or (node.op, node.target) == ("call_method", "relu")
