"""An approximate index of item vectors, for catalogues that are too large to compare all: HNSW by faiss.

Shapes: B queries, I items, D width, N neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bigmodel_cli.core.errors import InputError, MachineError

if TYPE_CHECKING:
    from numpy import ndarray

INDEX = "items.index"
LINKS, EFFORT = 32, 128
"""Links of a vector, and candidates that building and searching keep (Malkov and Yashunin 2018)."""
Engine = Literal["faiss"]
QUERIES_AT_ONCE = 1024


@dataclass(frozen=True)
class ItemIndex:
    """Queries (B,D) and N -> the nearest items (B,N) by dot product, -1 for none."""

    engine: str
    search: Callable[[ndarray, int], ndarray]

    def __call__(self, queries: ndarray, count: int) -> ndarray:
        return self.search(queries, count)


def _faiss() -> Any:
    """The library.

    Raises:
        MachineError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MachineError(f"an index needs faiss: {error}", hint="pip install 'bigmodel[faiss]'") from None
    return faiss


def build_index(vectors: ndarray, path: Path) -> None:
    """Write an index of `vectors` (I,D) float32 to `path`."""
    library = _faiss()
    made = library.IndexHNSWFlat(vectors.shape[1], LINKS, library.METRIC_INNER_PRODUCT)
    made.hnsw.efConstruction = EFFORT
    made.add(vectors)
    library.write_index(made, str(path))


def open_index(path: Path, items: int, width: int) -> ItemIndex:
    """The index at `path` of `items` vectors of `width` numbers.

    Raises:
        MachineError: faiss is not installed.
        InputError: it does not load, or is of other vectors.
    """
    library = _faiss()
    try:
        opened = library.read_index(str(path))
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{path}: {str(error).splitlines()[0][:200]}", "expected an index", "export it again"
        ) from None
    if (opened.ntotal, opened.d) != (items, width):
        what = f"{path}: {opened.ntotal} vectors of {opened.d} numbers"
        raise InputError(what, f"expected {items} of {width}", "export it again")

    def search(queries: ndarray, count: int) -> ndarray:
        options = library.SearchParametersHNSW(efSearch=max(EFFORT, count))
        return opened.search(queries, count, params=options)[1]  # type: ignore[no-any-return]

    return ItemIndex("faiss", search)


def recall(index: ItemIndex, queries: ndarray, vectors: ndarray, depth: int) -> float:
    """The share of the `depth` nearest vectors (I,D) of each query (B,D) that `index` finds."""
    import numpy as np

    depth, right = min(depth, len(vectors)), 0
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = queries[start : start + QUERIES_AT_ONCE]
        found, scores = index(part, depth), part @ vectors.T
        least = -np.partition(-scores, depth - 1, axis=1)[:, depth - 1 : depth]  # ties with the last are as good
        reached = np.take_along_axis(scores, found.clip(min=0), 1) >= least
        right += int((reached & (found >= 0)).sum())
    return right / (depth * len(queries))
