"""The trace of one training step: every operator that runs, and the lifetime of every storage.

A dispatch mode records the operators, and a weak reference to each storage records when it is freed.
``step.py`` runs the step on fake tensors.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

KINDS = {
    "mm": "matmul", "addmm": "matmul", "bmm": "matmul", "baddbmm": "matmul",
    "convolution": "conv", "convolution_backward": "conv",
    "convolution_1x1": "conv", "convolution_1x1_backward": "conv",
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "attention",
}  # fmt: skip
"""Operators that may be bound by arithmetic; every other one is bound by memory."""


@dataclass(frozen=True)
class Op:
    """One operator of the step. Bytes are of distinct tensor elements, without regard to caches."""

    name: str
    phase: str
    """forward, backward or optimizer."""
    flops: int
    read: int
    written: int
    min_dim: int
    """The smallest dimension of a matrix product, or the fewer channels of a convolution, on which efficiency depends;
    else 0."""
    side: int
    """The side of a convolution's output map; the number of query tokens of attention; the smaller dimension of a
    product that tensor parallelism can shard, which is never the tokens. Else 0."""
    half: bool
    """Whether it computes in bf16."""
    block: bool
    """Whether it belongs to one of the model's repeated blocks."""
    read_keys: frozenset[int]
    created_keys: frozenset[int]

    @property
    def kind(self) -> str:
        return KINDS.get(self.name, "memory")

    @property
    def backward(self) -> bool:
        return self.name.endswith("_backward")

    @property
    def bytes(self) -> int:
        return self.read + self.written


@dataclass
class Lifetime:
    """The lifetime of a storage of `size` bytes: from operator `allocated` until before `freed`, None for the end."""

    size: int
    allocated: int
    freed: int | None = None
    phase: str = ""


@dataclass
class Memory:
    """Bytes at the peak of one step, by category."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    workspace: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.workspace


@dataclass
class Trace:
    """The operators and storages of a step. `batch` is the micro-batch it was traced with."""

    batch: int
    ops: list[Op] = field(default_factory=list)
    lifetimes: dict[int, Lifetime] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    """The storages that are "weights", "gradients" or "optimizer" state."""
    block_parameters: list[int] = field(default_factory=list)
    """The number of parameters of each repeated block."""
    block_output_bytes: list[int] = field(default_factory=list)
    """Bytes of each block's output."""
    parameters: int = 0
    trained: int = 0

    def memory(self) -> Memory:
        """The memory at the peak, by category."""
        peak, _ = self._peak(self.lifetimes)
        found = Memory()
        for key, lifetime in self.lifetimes.items():
            if lifetime.allocated <= peak and (lifetime.freed is None or lifetime.freed > peak):
                category = self.categories.get(key) or (
                    "activations" if lifetime.phase in ("setup", "forward") else "workspace"
                )
                setattr(found, category, getattr(found, category) + lifetime.size)
        return found

    def live(self) -> int:
        """The peak of bytes that are neither weights, gradients nor optimizer state."""
        return self._peak({k: s for k, s in self.lifetimes.items() if k not in self.categories})[1]

    def _peak(self, lifetimes: Mapping[int, Lifetime]) -> tuple[int, int]:
        """The operator at which most bytes of `lifetimes` are live, and how many."""
        change = [0] * (len(self.ops) + 2)
        for lifetime in lifetimes.values():
            change[lifetime.allocated] += lifetime.size
            if lifetime.freed is not None:
                change[lifetime.freed] -= lifetime.size
        running = list(itertools.accumulate(change))
        index = max(range(len(running)), key=running.__getitem__)
        return index, running[index]

    def flops(self) -> int:
        """FLOPs of the step; a multiply-add counts as two."""
        return sum(op.flops for op in self.ops)


class Recorder(TorchDispatchMode):
    """Records each operator and storage in `trace` while it is active."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace, self.phase, self.in_block = trace, "setup", False
        self._known: dict[int, tuple[int, Any]] = {}
        self._last = 0

    def key(self, x: Tensor) -> int:
        """The unique key of the storage of `x`; a new storage is recorded as allocated now."""
        storage = x.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return self._known[address][0]
        self._last += 1
        key = self._last
        index = len(self.trace.ops)
        self.trace.lifetimes[key] = Lifetime(storage.nbytes(), index, phase=self.phase)

        def on_free(_: Any) -> None:
            self.trace.lifetimes[key].freed = len(self.trace.ops)
            del self._known[address]

        # The weak reference must be kept here, or its callback would not be called.
        self._known[address] = (key, weakref.ref(storage, on_free))
        return key

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [x for x in tree_iter((args, kwargs)) if isinstance(x, FakeTensor)]
        input_keys = [self.key(x) for x in inputs]
        out = function(*args, **(kwargs or {}))
        outputs = [x for x in tree_iter(out) if isinstance(x, FakeTensor)]
        if self.phase == "setup" or function.namespace == "prim":
            for x in outputs:
                self.key(x)
            return out
        index = len(self.trace.ops)
        output_keys = [self.key(x) for x in outputs]
        in_place = function._schema.is_mutable
        created_tensors = [(k, x) for k, x in zip(output_keys, outputs, strict=True) if k not in input_keys]
        if created_tensors or in_place:
            self._record(function, args, kwargs or {}, out, inputs, input_keys, created_tensors, in_place)
            assert len(self.trace.ops) == index + 1
        return out

    def _record(
        self,
        function: Any,
        args: Any,
        kwargs: Any,
        out: Any,
        inputs: Any,
        input_keys: Any,
        created_tensors: Any,
        in_place: bool,
    ) -> None:
        packet = function._overloadpacket
        flops = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        written = sum(storage_bytes(x) for _, x in created_tensors)
        if in_place:  # it writes its first argument, or all tensor lists of a fused optimizer
            changes = [a for a, s in zip(args, function._schema.arguments, strict=False) if s.alias_info]
            written += sum(storage_bytes(x) for x in tree_iter(changes) if isinstance(x, FakeTensor))
        name = packet.__name__
        if name in ("convolution", "convolution_backward") and math.prod(_conv_weight(name, inputs).shape[2:]) == 1:
            name = name.replace("convolution", "convolution_1x1")
        elif name.startswith("gelu") and kwargs.get("approximate") == "tanh":
            name = name.replace("gelu", "gelu_tanh")
        elif name == "max_pool2d_with_indices" and not inputs[0].is_contiguous(memory_format=torch.channels_last):
            name += "_nchw"
        floats = [x for x in inputs if x.is_floating_point()]
        self.trace.ops.append(
            Op(
                name,
                self.phase,
                flops,
                sum(storage_bytes(x) for x in dict(zip(input_keys, inputs, strict=True)).values()),
                written,
                _min_dim(name, inputs) if name in KINDS else 0,
                _characteristic_size(
                    name, inputs, out, [self.trace.categories.get(k) == "weights" for k in input_keys]
                ),
                bool(floats) and floats[0].element_size() == 2,
                self.in_block,
                frozenset(input_keys),
                frozenset(k for k, _ in created_tensors),
            )
        )


def storage_bytes(x: Tensor) -> int:
    """Bytes of the elements of `x`, where expanded elements count once."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def _min_dim(name: str, inputs: list[Tensor]) -> int:
    if KINDS[name] == "matmul":
        return min(_matmul_dims(inputs))
    if KINDS[name] == "conv":
        weight = _conv_weight(name, inputs)
        return min(weight.shape[:2])
    return int(inputs[0].shape[-1])


def _matmul_dims(inputs: list[Tensor]) -> tuple[int, int, int]:
    """Rows, inner dimension and columns of a matrix product."""
    a, b = [x for x in inputs if x.dim() >= 2][-2:]
    return a.shape[-2], a.shape[-1], b.shape[-1]


def _characteristic_size(name: str, inputs: list[Tensor], out: Any, weights: list[bool]) -> int:
    kind = KINDS.get(name)
    if kind == "attention":
        return int(inputs[0].shape[-2])
    if kind == "matmul":
        rows, inner, columns = _matmul_dims(inputs)
        first, second = weights[-2:]
        if second:
            return min(inner, columns)
        return (
            min(rows, inner) if first else min(rows, columns)
        )  # rows x columns: the gradient of a weight, summed over tokens
    if kind != "conv":
        return 0
    return int((inputs[0] if name.endswith("_backward") else out).shape[-1])


def _conv_weight(name: str, inputs: list[Tensor]) -> Tensor:
    """The (O,C,h,w) weight among the tensors of a convolution, or of its backward pass: gradient, input, weight."""
    return inputs[2 if name.endswith("_backward") else 1]
