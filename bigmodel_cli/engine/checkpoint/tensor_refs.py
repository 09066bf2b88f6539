"""What a checkpoint file says of its tensors, and of objects that only their own code could rebuild."""

from __future__ import annotations

import math
from dataclasses import dataclass

SIZES = {
    "float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "complex64": 8, "complex128": 16, "uint16": 2, "uint32": 4, "uint64": 8, "float8_e4m3fn": 1,
    "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StorageRef:
    """Bytes in the archive: the entry ``data/<key>``, of `count` elements."""

    dtype: str
    key: str
    count: int

    @property
    def bytes(self) -> int:
        return self.count * SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Opaque:
    """An object that only its own code could rebuild, which is not run."""

    name: str
