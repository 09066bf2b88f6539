"""The pickle inside a ``torch.save`` file, read as plain values and descriptions of tensors.

Nothing that the file names is looked up, imported or called. What torch would rebuild as a tensor becomes a
:class:`TensorRef`, and any other object an :class:`Opaque` with its name. So an untrusted file can be shown and
judged before torch reads it. torch's own ``weights_only`` unpickler allows more than we need: a file may call
``bytearray(10**11)`` and resize a storage at will.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.engine.checkpoint.tensor_refs import SIZES, Opaque, StorageRef, TensorRef

MAX_DEPTH = 64
MAX_MARKS = 2 * MAX_DEPTH
MAX_NAME = 4096  # characters of the path of a tensor
MAX_INT = 2**64
STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}  # fmt: skip


def object_limit(size: int) -> int:
    """How many containers, tensors and memo entries a pickle of `size` bytes may make: some 100 bytes of memory each.

    torch.save writes at least 10 bytes for one, but a hostile file a single byte.
    """
    return 200_000 + size // 8


def visit_limit(size: int) -> int:
    """How many values a pickle of `size` bytes may hold, where a shared value counts each time."""
    return 200_000 + 4 * size


class Unreadable(Exception):
    """The pickle is damaged, or was not written by ``torch.save``; the message says why."""


@dataclass(frozen=True, slots=True)
class _Global(Opaque):
    """A class or function named by the file, not yet called."""


@dataclass(frozen=True)
class Plain:
    """A pickle's `value`, and every tensor and opaque object in it with its path, such as ``model.fc.weight``."""

    value: Any
    special: list[tuple[str, TensorRef | Opaque]]


def read_plain(pickle: bytes) -> Plain:
    """The values in `pickle`: dicts, lists, tuples, str, int, float, bool, None, TensorRef and Opaque.

    Memory and time are bounded by the number of bytes, before they are used.

    Raises:
        Unreadable: it is damaged, nested too deep, or holds too much for its size.
    """
    try:
        value = _Unpickler(object_limit(len(pickle))).run(pickle)
    except Unreadable:
        raise
    except Exception as error:  # a damaged pickle runs off its stack or memo in many ways
        raise Unreadable(f"damaged pickle ({type(error).__name__})") from None
    return Plain(value, list(_special(value, visit_limit(len(pickle)))))


def _special(value: Any, limit: int) -> Iterator[tuple[str, TensorRef | Opaque]]:
    """Every tensor and opaque object under `value` with its path.

    Raises:
        Unreadable: more than MAX_DEPTH levels or `limit` values: a list in a file may contain itself, or grow
            exponentially by sharing. A long path counts more, so that many of them do not fill the memory.
    """
    stack: list[tuple[str, Iterator[tuple[Any, Any]], str]] = [("", iter([("", value)]), "{}{}")]
    while stack:
        place, members, join = stack[-1]
        key, item = next(members, (None, _END))
        if item is _END:
            stack.pop()
            continue
        limit -= 1
        if isinstance(item, SPECIAL):
            path = join.format(place, key).removeprefix(".")
            limit -= len(path) // 32
            if len(path) > MAX_NAME:
                raise Unreadable(f"a name of more than {MAX_NAME} characters")
            if isinstance(item, (TensorRef, Opaque)):
                yield path, item
            elif len(stack) > MAX_DEPTH:
                raise Unreadable(f"nested deeper than {MAX_DEPTH}")
            elif isinstance(item, dict):
                stack.append((path, iter(item.items()), "{}.{}"))
            else:
                stack.append((path, iter(enumerate(item)), "{}[{}]"))
        if limit < 0:
            raise Unreadable("more values than its bytes could hold")


_END: Any = object()
SPECIAL = (dict, list, tuple, TensorRef, Opaque)


class _Unpickler:
    """An unpickler limited to torch.save's instructions (protocol 2), whose calls build descriptions."""

    def __init__(self, objects: int) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.objects = objects  # how many more it may make

    def count(self, objects: int = 1) -> None:
        self.objects -= objects
        if self.objects < 0:
            raise Unreadable("more values than a file of its size holds")

    def run(self, pickle: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(pickle):
            name = opcode.name
            if name == "STOP":
                if len(self.stack) != 1 or self.marks:
                    raise Unreadable("damaged pickle")
                return self.stack[0]
            if name in CONSTANTS:
                self.count(name in CONTAINERS)
                self.stack.append(CONSTANTS[name]())
            elif name in LITERALS:
                if type(argument) is int and abs(argument) >= MAX_INT:
                    raise Unreadable("a number of more than 64 bits")
                self.stack.append(argument)
            elif name == "MARK":
                if len(self.marks) > MAX_MARKS:
                    raise Unreadable(f"nested deeper than {MAX_DEPTH}")
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
        self.count()
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
        self.count(len(items) // 2)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise Unreadable(f"a dictionary key of type {type(key).__name__}")
            target[key] = value

    def call(self, _: Any) -> None:
        self.count()
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
        self.count()
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
        self.count()
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
    pairs = list(pairs)
    machine = _Unpickler(len(pairs))
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
CONTAINERS = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"}
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
