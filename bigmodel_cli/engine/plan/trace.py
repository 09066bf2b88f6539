"""A record of one training step: every operator that runs, and what is in memory.

A dispatch mode sees each operator; a weak reference to each storage says when it is freed.
``step.py`` makes the step, on tensors without contents.
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
"""Operators that may be bound by arithmetic; every other one by memory."""


@dataclass(frozen=True)
class Op:
    """One operator of the step. Bytes are of distinct tensor elements, whatever caches hold."""

    name: str
    phase: str
    """forward, backward or optimizer."""
    flops: int
    read: int
    written: int
    narrow: int
    """The smallest side of a matrix product, the fewer channels of a convolution: efficiency depends on it. Else 0."""
    side: int
    """Of the map that a convolution makes; the tokens that attention looks from; the smaller one of the weight in a
    product, of those that tensor parallelism cuts (never the tokens). Else 0."""
    half: bool
    """Whether it computes in 16 bits."""
    block: bool
    """Whether it belongs to one of the model's repeated blocks."""
    reads: frozenset[int]
    makes: frozenset[int]

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
class Stay:
    """A storage's time in memory, in operators: from `born` until before `died`."""

    size: int
    born: int
    died: int | None = None
    phase: str = ""


@dataclass
class Memory:
    """Bytes at the peak of one step, by part."""

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
    """What a step does and holds. `batch` is the micro-batch it was traced with."""

    batch: int
    ops: list[Op] = field(default_factory=list)
    stays: dict[int, Stay] = field(default_factory=dict)
    parts: dict[int, str] = field(default_factory=dict)
    """Which storages are weights, gradients, optimizer (state)."""
    block_parameters: list[int] = field(default_factory=list)
    """Numbers in the parameters of each repeated block."""
    block_outputs: list[int] = field(default_factory=list)
    """Bytes of each block's output."""
    parameters: int = 0
    trained: int = 0

    def memory(self) -> Memory:
        """The peak by part."""
        peak, _ = self._peak(self.stays)
        found = Memory()
        for key, stay in self.stays.items():
            if stay.born <= peak and (stay.died is None or stay.died > peak):
                part = self.parts.get(key) or ("activations" if stay.phase in ("setup", "forward") else "workspace")
                setattr(found, part, getattr(found, part) + stay.size)
        return found

    def live(self) -> int:
        """The peak of what is neither weights, gradients nor optimizer state."""
        return self._peak({k: s for k, s in self.stays.items() if k not in self.parts})[1]

    def _peak(self, stays: Mapping[int, Stay]) -> tuple[int, int]:
        """At which operator most bytes of `stays` are live, and how many."""
        change = [0] * (len(self.ops) + 2)
        for stay in stays.values():
            change[stay.born] += stay.size
            if stay.died is not None:
                change[stay.died] -= stay.size
        running = list(itertools.accumulate(change))
        place = max(range(len(running)), key=running.__getitem__)
        return place, running[place]

    def flops(self) -> int:
        """Of the whole step; a multiply-add is two."""
        return sum(op.flops for op in self.ops)


class Recorder(TorchDispatchMode):
    """Writes each operator and storage into `trace` while it is on."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace, self.phase, self.in_block = trace, "setup", False
        self._known: dict[int, tuple[int, Any]] = {}
        self._last = 0

    def key(self, x: Tensor) -> int:
        """A number of its own for the storage of `x`, which is counted from now on where it is new."""
        storage = x.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return self._known[address][0]
        self._last += 1
        key = self._last
        now = len(self.trace.ops)
        self.trace.stays[key] = Stay(storage.nbytes(), now, phase=self.phase)

        def freed(_: Any) -> None:
            self.trace.stays[key].died = len(self.trace.ops)
            del self._known[address]

        # The weak reference keeps no storage alive; kept here, or it would never be told.
        self._known[address] = (key, weakref.ref(storage, freed))
        return key

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [x for x in tree_iter((args, kwargs)) if isinstance(x, FakeTensor)]
        before = [self.key(x) for x in inputs]
        out = function(*args, **(kwargs or {}))
        outputs = [x for x in tree_iter(out) if isinstance(x, FakeTensor)]
        if self.phase == "setup" or function.namespace == "prim":
            for x in outputs:
                self.key(x)
            return out
        place = len(self.trace.ops)
        after = [self.key(x) for x in outputs]
        changed = function._schema.is_mutable
        fresh = [(k, x) for k, x in zip(after, outputs, strict=True) if k not in before]
        if fresh or changed:
            self._write(function, args, kwargs or {}, out, inputs, before, fresh, changed)
            assert len(self.trace.ops) == place + 1
        return out

    def _write(
        self, function: Any, args: Any, kwargs: Any, out: Any, inputs: Any, before: Any, fresh: Any, changed: bool
    ) -> None:
        packet = function._overloadpacket
        flops = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        written = sum(size_of(x) for _, x in fresh)
        if changed:  # in place: what is changed is the first argument, or all lists of tensors of a fused optimizer
            changes = [a for a, s in zip(args, function._schema.arguments, strict=False) if s.alias_info]
            written += sum(size_of(x) for x in tree_iter(changes) if isinstance(x, FakeTensor))
        name = packet.__name__
        if name in ("convolution", "convolution_backward") and math.prod(_filter(name, inputs).shape[2:]) == 1:
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
                sum(size_of(x) for x in dict(zip(before, inputs, strict=True)).values()),
                written,
                _narrow(name, inputs) if name in KINDS else 0,
                _side(name, inputs, out, [self.trace.parts.get(k) == "weights" for k in before]),
                bool(floats) and floats[0].element_size() == 2,
                self.in_block,
                frozenset(before),
                frozenset(k for k, _ in fresh),
            )
        )


def size_of(x: Tensor) -> int:
    """Bytes of the elements of `x`, an expanded one counted once."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def _narrow(name: str, inputs: list[Tensor]) -> int:
    if KINDS[name] == "matmul":
        return min(_product(inputs))
    if KINDS[name] == "conv":
        weight = _filter(name, inputs)
        return min(weight.shape[:2])
    return int(inputs[0].shape[-1])


def _product(inputs: list[Tensor]) -> tuple[int, int, int]:
    """Rows, inner side and columns of a matrix product."""
    a, b = [x for x in inputs if x.dim() >= 2][-2:]
    return a.shape[-2], a.shape[-1], b.shape[-1]


def _side(name: str, inputs: list[Tensor], out: Any, weights: list[bool]) -> int:
    kind = KINDS.get(name)
    if kind == "attention":
        return int(inputs[0].shape[-2])
    if kind == "matmul":
        rows, inner, columns = _product(inputs)
        first, second = weights[-2:]
        if second:
            return min(inner, columns)
        return min(rows, inner) if first else min(rows, columns)  # the last: a weight's gradient, summed over tokens
    if kind != "conv":
        return 0
    return int((inputs[0] if name.endswith("_backward") else out).shape[-1])


def _filter(name: str, inputs: list[Tensor]) -> Tensor:
    """The (O,C,h,w) weight among the tensors of a convolution, or of its backward pass: gradient, input, weight."""
    return inputs[2 if name.endswith("_backward") else 1]
