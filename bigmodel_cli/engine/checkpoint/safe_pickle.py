"""The pickle inside a ``torch.save`` file, read as plain values and descriptions of tensors.

Nothing that the file names is looked up, imported or called. What torch would rebuild as a tensor becomes a
:class:`TensorRef`, and any other object an :class:`Opaque` with its name. So an untrusted file can be shown and
judged before torch reads it. torch's own ``weights_only`` unpickler allows more than we need: a file may call
``bytearray(10**11)`` and resize a storage at will.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

MAX_NODES = 2_000_000  # in a file; a shared value counts each time
MAX_DEPTH = 64
MAX_INT = 2**64
STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}  # fmt: skip
SIZES = {
    "float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "complex64": 8, "complex128": 16, "uint16": 2, "uint32": 4, "uint64": 8, "float8_e4m3fn": 1,
    "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip


class Unreadable(Exception):
    """The pickle is damaged, or was not written by ``torch.save``; the message says why."""


@dataclass(frozen=True)
class StorageRef:
    """Bytes in the archive: the entry ``data/<key>``, of `count` elements."""

    dtype: str
    key: str
    count: int

    @property
    def bytes(self) -> int:
        return self.count * SIZES[self.dtype]


@dataclass(frozen=True)
class TensorRef:
    """A tensor in the file: its type, shape, and place in its storage (in elements)."""

    dtype: str
    shape: tuple[int, ...]
    storage: StorageRef
    offset: int
    stride: tuple[int, ...]

    @classmethod
    def of(cls, dtype: str, shape: tuple[int, ...]) -> TensorRef:
        """A contiguous tensor with a storage of its own."""
        count = math.prod(shape)
        stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        return cls(dtype, shape, StorageRef(dtype, "0", count), 0, stride)

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * SIZES[self.dtype]

    def in_bounds(self) -> bool:
        """Whether every element lies in the storage, and the tensor has no more elements than the storage."""
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        return self.count == 0 or (last < self.storage.count and self.count <= self.storage.count)


@dataclass(frozen=True)
class Opaque:
    """An object that only its own code could rebuild, which is not run."""

    name: str


@dataclass(frozen=True)
class _Global(Opaque):
    """A class or function named by the file, not yet called."""


def read_plain(pickle: bytes) -> Any:
    """The values in `pickle`: dicts, lists, tuples, str, int, float, bool, None, TensorRef and Opaque.

    Raises:
        Unreadable: it is damaged, nested too deep, or holds too much.
    """
    try:
        value = _Unpickler().run(pickle)
    except Unreadable:
        raise
    except Exception as error:  # a damaged pickle runs off its stack or memo in many ways
        raise Unreadable(f"damaged pickle ({type(error).__name__})") from None
    for _ in walk(value):
        pass
    return value


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value under `value` with its path, such as ``model.fc.weight``; containers before their members.

    Raises:
        Unreadable: more than MAX_DEPTH levels or MAX_NODES values: a list in a file may contain itself,
            or grow exponentially by sharing.
    """
    stack = [(path, value, 0)]
    count = 0
    while stack:
        place, item, depth = stack.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise Unreadable(f"nested deeper than {MAX_DEPTH}")
        if count > MAX_NODES:
            raise Unreadable(f"more than {MAX_NODES} values")
        yield place, item
        if isinstance(item, dict):
            stack += [(f"{place}.{key}" if place else str(key), item[key], depth + 1) for key in reversed(item)]
        elif isinstance(item, (list, tuple)):
            stack += [(f"{place}[{i}]", item[i], depth + 1) for i in reversed(range(len(item)))]


class _Unpickler:
    """An unpickler limited to torch.save's instructions (protocol 2), whose calls build descriptions."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, pickle: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(pickle):
            name = opcode.name
            if name == "STOP":
                if len(self.stack) != 1 or self.marks:
                    raise Unreadable("damaged pickle")
                return self.stack[0]
            if name in CONSTANTS:
                self.stack.append(CONSTANTS[name]())
            elif name in LITERALS:
                if type(argument) is int and abs(argument) >= MAX_INT:
                    raise Unreadable("a number of more than 64 bits")
                self.stack.append(argument)
            elif name == "MARK":
                self.marks.append(self.stack)
                self.stack = []
            elif name == "PROTO":
                if argument != 2:
                    raise Unreadable(f"pickle protocol {argument}, where torch.save writes 2")
            elif name in ACTIONS:
                ACTIONS[name](self, argument)
            else:
                raise Unreadable(f"pickle instruction {name}, which torch.save does not write")
        raise Unreadable("damaged pickle")

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pop(self, n: int) -> list[Any]:
        if n > len(self.stack):
            raise Unreadable("damaged pickle")
        items = self.stack[len(self.stack) - n :]
        del self.stack[len(self.stack) - n :]
        return items

    def push_tuple(self, items: list[Any]) -> None:
        self.stack.append(tuple(items))

    def extend_list(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise Unreadable("damaged pickle")

    def update_dict(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            return
        if type(target) is not dict or len(items) % 2:
            raise Unreadable("damaged pickle")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise Unreadable(f"a dictionary key of type {type(key).__name__}")
            target[key] = value

    def call(self, _: Any) -> None:
        function, arguments = self.pop(2)
        if not isinstance(arguments, tuple):
            raise Unreadable("damaged pickle")
        if isinstance(function, _Global) and function.name in CALLS:
            self.stack.append(CALLS[function.name](*arguments))
        elif isinstance(function, Opaque):
            self.stack.append(Opaque(function.name))
        else:
            raise Unreadable("damaged pickle")

    def build(self, _: Any) -> None:
        """Setting attributes: an OrderedDict's ``_metadata`` is dropped, and an opaque object unchanged."""
        target, _ = self.pop(2)
        if type(target) is not dict and not isinstance(target, Opaque):
            raise Unreadable("attributes set on a plain value")
        self.stack.append(target)

    def memoize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def storage(self, _: Any) -> None:
        """Read one of torch's persistent ids: ``("storage", torch.FloatStorage, key, location, count)``."""
        (identity,) = self.pop(1)
        tag, kind, key, location, count = identity
        name = kind.name.removeprefix("torch.").removeprefix("storage.") if isinstance(kind, _Global) else ""
        dtype = "uint8" if name == "UntypedStorage" else STORAGES.get(name)
        if tag != "storage" or dtype is None or type(key) is not str or type(count) is not int or count < 0:
            raise Unreadable("a storage that torch.save does not write")
        if location == "meta" or not key.isalnum():
            raise Unreadable("a storage without bytes")
        self.stack.append(StorageRef(dtype, key, count))


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorRef:
    """``_rebuild_tensor_v2`` and ``_v3`` (whose dtype follows two flags: its storage is untyped)."""
    named = [x.name.removeprefix("torch.") for x in rest if isinstance(x, _Global)]
    integers = [offset, *shape, *stride] if isinstance(shape, tuple) and isinstance(stride, tuple) else [None]
    if not isinstance(storage, StorageRef) or any(type(n) is not int or n < 0 for n in integers):
        raise Unreadable("a tensor that torch.save does not write")
    dtype = named[0] if named else storage.dtype
    if any(isinstance(x, dict) and x for x in rest):
        raise Unreadable("a tensor with hooks or a conjugate view")
    if len(shape) != len(stride) or len(shape) > MAX_DEPTH or dtype not in SIZES:
        raise Unreadable("a tensor that torch.save does not write")
    if dtype != storage.dtype:
        storage = StorageRef(dtype, storage.key, storage.count * SIZES[storage.dtype] // SIZES[dtype])
    return TensorRef(dtype, shape, storage, offset, stride)


def _parameter(data: Any, *rest: Any) -> TensorRef:
    if not isinstance(data, TensorRef):
        raise Unreadable("a parameter without a tensor")
    return data


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    machine = _Unpickler()
    machine.stack.append({})
    machine.update_dict([x for pair in pairs for x in pair])
    return machine.stack[0]  # type: ignore[no-any-return]


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": lambda sides: tuple(sides),
    "collections.OrderedDict": _ordered,
}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": lambda: Opaque("builtins.set"),
}  # fmt: skip
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
ACTIONS: dict[str, Callable[[_Unpickler, Any], None]] = {
    "TUPLE": lambda m, _: m.push_tuple(m.pop_mark()),
    "TUPLE1": lambda m, _: m.push_tuple(m.pop(1)),
    "TUPLE2": lambda m, _: m.push_tuple(m.pop(2)),
    "TUPLE3": lambda m, _: m.push_tuple(m.pop(3)),
    "APPEND": lambda m, _: m.extend_list(m.pop(1)),
    "APPENDS": lambda m, _: m.extend_list(m.pop_mark()),
    "SETITEM": lambda m, _: m.update_dict(m.pop(2)),
    "SETITEMS": lambda m, _: m.update_dict(m.pop_mark()),
    "BINGET": lambda m, i: m.stack.append(m.memo[i]),
    "LONG_BINGET": lambda m, i: m.stack.append(m.memo[i]),
    "BINPUT": lambda m, i: m.memoize(i),
    "LONG_BINPUT": lambda m, i: m.memoize(i),
    "GLOBAL": lambda m, pair: m.stack.append(_Global(pair.replace(" ", "."))),
    "REDUCE": _Unpickler.call,
    "NEWOBJ": _Unpickler.call,
    "BUILD": _Unpickler.build,
    "BINPERSID": _Unpickler.storage,
}
