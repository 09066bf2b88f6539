"""Requests for recommendations: a user or a history in, the best items out. Does not import torch.

Shapes: B batch, S items of a user, I items, N answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.core.interactions import InteractionSpec
from bigmodel_cli.core.registry import readers
from bigmodel_cli.export.retrieval import Retrieval, read_histories, with_index
from bigmodel_cli.serve.http_errors import HttpRefusal
from bigmodel_cli.serve.model import Part, ServedModel
from bigmodel_cli.serve.uploads import Limits, read_json

if TYPE_CHECKING:
    import numpy as np

    from bigmodel_cli.export.folder import ExportFolder

MOST_SEEN, MOST_TOP = 10_000, 1000
"""Items of a history in a request, and answers to one."""
REQUEST: Mapping[str, Any] = {
    "application/json": {"schema": {"type": "object", "properties": {
        "user": {"type": "string"}, "history": {"type": "array", "items": {"type": "string"}}}}}
}  # fmt: skip
EXPECTED = 'expected {"user": "ID"}, {"history": ["ITEM", ...]} or both'


@dataclass(frozen=True)
class Asked:
    """A user's number and the items seen, numbered from 1, oldest first."""

    user: int
    history: np.ndarray


@dataclass(frozen=True)
class InteractionReader:
    """A user, whose history the export knows, or a history given in the request."""

    spec: InteractionSpec
    known: tuple[np.ndarray, np.ndarray] | None
    kind = "interactions"
    content = REQUEST
    query_path = "/recommend"

    def query(self, given: Mapping[str, str]) -> bytes:
        """The body that says the same as ``?user=ID&history=ITEM,ITEM``."""
        history = {"history": [i for i in given["history"].split(",") if i]} if "history" in given else {}
        return json.dumps({"user": given["user"], **history} if "user" in given else history).encode()

    def parts(self, content_type: str, body: bytes, limits: Limits) -> Sequence[Part]:
        given = read_json(body, MOST_SEEN, EXPECTED)
        if not isinstance(given, dict) or not given or not set(given) <= {"user", "history"}:
            raise HttpRefusal(400, "the JSON is not what was expected", EXPECTED)
        user, history = given.get("user"), given.get("history")
        name = "history" if user is None else f"user {user}"
        return [Part(str(name)[:80], 0, partial(self._one, user, history))]

    def _one(self, user: Any, history: Any) -> Asked:
        import numpy as np

        index = None if user is None else self._user(user)
        if history is None:
            if index is None or self.known is None:
                raise HttpRefusal(400, "no history", EXPECTED, "the export holds no histories of its users")
            values, offsets = self.known
            return Asked(index, values[offsets[index] : offsets[index + 1]].astype(np.int64))
        if not isinstance(history, list) or not all(isinstance(i, (str, int)) for i in history):
            raise HttpRefusal(400, "history is no list of items", EXPECTED)
        if len(history) > MOST_SEEN:
            raise HttpRefusal(413, f"a history of {len(history)} items", f"expected at most {MOST_SEEN}")
        return Asked(index or 0, np.array([self._item(i) + 1 for i in history], np.int64))

    def _user(self, name: Any) -> int:
        if self._users is not None and str(name) in self._users:
            return self._users[str(name)]
        try:
            return self.spec.user_index(str(name)[:200])
        except InputError as error:
            raise HttpRefusal(404, error.what, error.expected) from None

    def _item(self, name: Any) -> int:
        if self._items is not None and str(name) in self._items:
            return self._items[str(name)]
        try:
            return self.spec.item_index(str(name)[:200])
        except InputError as error:
            raise HttpRefusal(404, error.what, error.expected) from None

    @cached_property
    def _users(self) -> dict[str, int] | None:
        return {name: i for i, name in enumerate(self.spec.user_ids)} or None

    @cached_property
    def _items(self) -> dict[str, int] | None:
        return {name: i for i, name in enumerate(self.spec.item_ids)} or None

    def batch(self, samples: Sequence[Any]) -> Any:
        """user (B,) and history (B,S), padded with 0."""
        import numpy as np

        rows = np.zeros((len(samples), max(1, *(len(s.history) for s in samples))), np.int64)
        for row, sample in zip(rows, samples, strict=True):
            row[: len(sample.history)] = sample.history
        return np.array([s.user for s in samples], np.int64), rows

    def example(self) -> Any:
        import numpy as np

        return Asked(0, np.ones(1, np.int64))


@dataclass(frozen=True)
class ServedRecommender(ServedModel):
    """A ranking: its values for a sample are the best items (N,) and their scores (N,), without what was seen."""

    @property
    def outputs(self) -> int:
        assert isinstance(self.spec, InteractionSpec)
        return self.spec.items

    def answer(self, samples: Sequence[Any]) -> Any:
        """Prepared samples -> a pair of items (N,) and scores (N,) for each.

        Raises:
            BigmodelError: the scores are not finite, or have the wrong shape.
        """
        import numpy as np

        assert isinstance(self.spec, InteractionSpec)
        user, history = self.reader.batch(samples)
        if isinstance(self.run, Retrieval) and self.run.index is not None:
            most = min(MOST_TOP + history.shape[1], self.spec.items)
            found, scores = self.run.search(user, history, most)
        else:
            scores = np.asarray(self.run(user, history))
            if scores.shape != (len(samples), self.spec.items):
                raise BigmodelError(f"the model's scores have the shape {scores.shape}")
            scores, found = scores.copy(), None
        if np.isnan(scores).any():
            raise BigmodelError("the model's scores are not finite")
        return [_best(scores[b], None if found is None else found[b], s.history) for b, s in enumerate(samples)]

    def to_json(self, values: Any, top: int) -> dict[str, Any]:
        assert isinstance(self.spec, InteractionSpec)
        spec, (items, scores) = self.spec, values
        chosen = zip(items[:top].tolist(), scores[:top].tolist(), strict=True)
        return {"top": [{"item": spec.item_id(i), "title": spec.title(i), "score": float(f"{s:.6g}")}
                        for i, s in chosen]}  # fmt: skip


def _best(scores: np.ndarray, items: np.ndarray | None, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best items with their scores, without those `seen`; ties by number. `items` names the scores' items."""
    import numpy as np

    if items is None:
        scores[seen[seen > 0] - 1] = -np.inf
        if len(scores) > 4 * MOST_TOP:
            items = np.sort(np.argpartition(-scores, MOST_TOP)[:MOST_TOP])
            scores = scores[items]
        else:
            items = np.arange(len(scores))
    else:
        scores = np.where(np.isin(items, seen - 1), -np.inf, scores)
    order = (-scores).argsort(kind="stable")[:MOST_TOP]
    order = order[scores[order] > -np.inf]
    return items[order], scores[order]


def as_recommender(served: ServedModel, export: ExportFolder, trust: bool) -> ServedRecommender:
    """`served` as a recommender. With `trust`, through the export's index if it has one; else search is exact."""
    from bigmodel_cli.export.item_index import INDEX

    run = served.run
    search = "exact"
    if isinstance(run, Retrieval) and (export.path / INDEX).is_file():
        if trust:
            run = with_index(run, export.path)
            search = "index"
        else:
            search = "exact; --trust opens the index, a file that its library does not check"
    spec = export.spec
    about = {**served.about, "users": spec.users, "items": spec.items, "search": search}
    return ServedRecommender(**vars(replace(served, run=run, about=about)))


@readers.register("interactions", served=as_recommender)
def interaction_reader(export: ExportFolder) -> InteractionReader:
    """Users and histories, for rankings.

    Raises:
        InputError: the model rates pairs instead.
    """
    if "history" not in export.preprocess:
        raise InputError(f"{export.path}: a model of {export.about['task']}", "expected a ranking, as of two-tower")
    known = read_histories(export.path)
    if known is not None and len(known[1]) != export.spec.users + 1:
        raise InputError(f"{export.path}: histories of {len(known[1]) - 1} users", f"expected {export.spec.users}")
    if known is not None and len(known[0]) and not 1 <= known[0].min() <= known[0].max() <= export.spec.items:
        raise InputError(f"{export.path}: histories of items beyond {export.spec.items}", hint="export it again")
    return InteractionReader(export.spec, known)
