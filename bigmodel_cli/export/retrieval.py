"""Retrieval: the user tower as ONNX, the vectors of all items, an index of them, and what users have seen.

    model.onnx              user (B,) and history (B,S) -> vectors (B,D)
    items.safetensors       vectors (I,D) float32: a score is the dot product of a user's and an item's
    items.index             optional: an HNSW graph of the vectors, by faiss
    histories.safetensors   optional: the items of each user, so that a user's number is enough to recommend

Shapes: B batch, S items of a user, I items, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.contents import check_onnx, check_safetensors, require_own
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.item_index import INDEX, Engine, ItemIndex, build_index, open_index, recall
from bigmodel_cli.export.onnx import onnx, run_onnx
from bigmodel_cli.export.runtime import Runtime

if TYPE_CHECKING:
    import numpy as np
    from numpy import ndarray
    from torch import Tensor, nn

    from bigmodel_cli.export.subject import Subject

ITEMS, HISTORIES = "items.safetensors", "histories.safetensors"
DEPTH, LEAST_RECALL = 10, 0.95
"""How many nearest items an index is tested on, and the least share of them that it must find."""
Recall = Annotated[float, Field(ge=0, le=1, description="least share of the nearest items that the index must find")]
RUNTIME = Runtime(
    needs=("onnxruntime>=1.15", "safetensors>=0.5"),
    imports="import onnxruntime\nfrom safetensors.numpy import load_file",
    run="""\
session = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])
names = [given.name for given in session.get_inputs()]
vectors = load_file(here / "items.safetensors")["vectors"]
logits = session.run(None, dict(zip(names, x)))[0] @ vectors.T""",
)


@dataclass(frozen=True)
class Retrieval:
    """An opened export: a :data:`Run` that scores every item, and a search for the best of them."""

    tower: Run
    vectors: ndarray
    index: ItemIndex | None = None

    def __call__(self, user: ndarray, history: ndarray) -> ndarray:
        """Scores (B,I)."""
        return self.tower(user, history) @ self.vectors.T  # type: ignore[no-any-return]

    def search(self, user: ndarray, history: ndarray, count: int) -> tuple[ndarray, ndarray]:
        """The `count` best items by the index (B,count), -1 for none, and their exact scores, best first."""
        import numpy as np

        assert self.index is not None
        query = self.tower(user, history)
        found = self.index(query, count)
        scores = np.einsum("bd,bnd->bn", query, self.vectors[found.clip(min=0)])
        scores[found < 0] = -np.inf
        order = (-scores).argsort(1, kind="stable")
        return np.take_along_axis(found, order, 1), np.take_along_axis(scores, order, 1)


def open_retrieval(path: Path, build: Callable[[], nn.Module]) -> Retrieval:
    """The export whose user tower is at `path`, without its index: that is opened by :func:`with_index`."""
    from safetensors.numpy import load_file

    return Retrieval(run_onnx(path, build), load_file(path.parent / ITEMS)["vectors"])


def with_index(run: Retrieval, folder: Path) -> Retrieval:
    """`run` with the index in `folder`, if there is one. An index is a file that a C++ library parses unchecked.

    Raises:
        MachineError: its library is not installed.
        InputError: it is damaged, or of other vectors.
    """
    file = folder / INDEX
    return Retrieval(run.tower, run.vectors, open_index(file, *run.vectors.shape)) if file.is_file() else run


def check_retrieval(path: Path) -> None:
    """The user tower, and the vectors, histories and index beside it; of the index, only that it is a file of theirs.

    Raises:
        InputError: a file is something else.
    """
    check_onnx(path)
    check_safetensors(path.parent / ITEMS)
    for name, check in ((HISTORIES, check_safetensors), (INDEX, require_own)):
        file = path.parent / name
        if file.exists() or file.is_symlink():
            check(file)


def prove_index(subject: Subject, run: Run, folder: Path) -> dict[str, Any]:
    """The recall of the index against exact search, for the users of the proof; ``failed`` if it is below the limit."""
    import json

    from bigmodel_cli.export.folder import EXPORT

    assert isinstance(run, Retrieval)
    known = read_histories(folder)
    people = {} if known is None else {"histories of users": f"{len(known[1]) - 1:,}, in {HISTORIES}"}
    if not (folder / INDEX).is_file():
        return {"search": "exact", **people, "failed": []}
    import numpy as np

    least = json.loads((folder / EXPORT).read_text())["options"].get("least_recall", LEAST_RECALL)
    opened = with_index(run, folder)
    queries = np.concatenate([run.tower(*(x.numpy() for x in inputs)) for inputs in subject.inputs])
    assert opened.index is not None
    found = recall(opened.index, queries, run.vectors, DEPTH)
    missed = f"the index finds {found:.2%} of the {DEPTH} nearest items, less than {least:.0%}"
    return {
        "search": opened.index.engine, "recall": found, "at": DEPTH, "users": len(queries), **people,
        "failed": [missed] if found < least else [],
    }  # fmt: skip


@exports.register(
    suffix=".onnx", run=open_retrieval, check=check_retrieval, runtime=RUNTIME, proves=prove_index,
    carries=("histories",), unchecked=INDEX, personal=HISTORIES, kinds=("interactions",),
)  # fmt: skip
def retrieval(
    model: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    carry: dict[str, Any],
    *,
    index: Annotated[Engine | None, Field(description="by faiss; none: search is exact")] = None,
    least_recall: Recall = LEAST_RECALL,
    histories: Annotated[bool, Field(description="write what each user has seen, so that an id is enough")] = True,
) -> None:
    """A recommender's user tower as ONNX with the vectors of all items, for exact search or through an index.

    Raises:
        InputError: the model's scores are no dot products of vectors.
    """
    import torch
    from safetensors.torch import save_file

    from bigmodel_cli.core.interactions import HasVectors

    if not isinstance(model, HasVectors) or len(example) != 2 or example[1].dim() != 2:
        hint = "two-tower or sasrec; or --format onnx, which scores every item"
        raise InputError("the model has no vector of a user's history", "expected a ranking by vectors", hint)
    known = carry.pop("histories", None)
    onnx(_user_tower(model), example, path, carry)
    with torch.inference_mode():
        vectors = model.item_vectors().float().contiguous()
    save_file({"vectors": vectors}, str(path.parent / ITEMS))
    if histories and known is not None:
        save_file(known, str(path.parent / HISTORIES))
    if index is not None:
        build_index(vectors.numpy(), path.parent / INDEX)


def _user_tower(model: Any) -> nn.Module:
    """The user's side of `model` as a module: user (B,), history (B,S) -> (B,D)."""
    from torch import nn

    class UserTower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, user: Tensor, history: Tensor) -> Tensor:
            return self.model.user_vectors(user, history)  # type: ignore[no-any-return]

    return UserTower().eval()


def read_histories(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """`values` (N,) item numbers from 1 and `offsets` (U + 1,) of each user's, if the export has them.

    Raises:
        InputError: they are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = folder / HISTORIES
    if not file.exists() and not file.is_symlink():
        return None
    check_safetensors(file)
    try:
        held = load_file(file)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that NumPy has not
        raise InputError(f"{file}: damaged ({error})", "expected histories of users", "export it again") from None
    values, offsets = held.get("values"), held.get("offsets")
    if values is None or offsets is None or not _cut(values, offsets):
        raise InputError(f"{file}: damaged", "expected values and the offsets of each user", "export it again")
    return values, offsets


def _cut(values: np.ndarray, offsets: np.ndarray) -> bool:
    """Whether `offsets` (U + 1,) cut `values` (N,) into a part for each user."""
    numbers = all(x.ndim == 1 and x.dtype.kind in "iu" for x in (values, offsets))
    if not numbers or not len(offsets):
        return False
    return bool(offsets[0] == 0 and offsets[-1] == len(values) and (offsets[1:] >= offsets[:-1]).all())
