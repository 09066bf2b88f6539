"""Interactions of users with items: the spec that models are built for, and protocols of sources, tasks and models.

Shapes: B batch, S interactions of a user, I items, U users. Item numbers in histories start at 1; 0 is padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.sources import Source
from bigmodel_cli.core.specs import checked, register

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.core.types import Batch

MOST = 1 << 31  # users or items


@dataclass(frozen=True)
class Column:
    """A categorical attribute of users or items: the names of its values, and the values of each user or item.

    `codes` holds, for each user or item in order, the indices into `values`; an empty tuple: unknown.
    """

    name: str
    values: tuple[str, ...]
    codes: tuple[tuple[int, ...], ...]


@register
@dataclass(frozen=True)
class InteractionSpec:
    """Users, items and what is known of them.

    `context` is the number of a user's latest items that sequence models read. `low` and `high` are the smallest and
    largest rating, and `mean` the mean of the train split. `item_counts` counts each item's interactions there.
    Empty ids stand for the numbers from 0 on: a catalogue of ten million items needs no ten million names.
    """

    kind: ClassVar[str] = "interactions"

    users: int
    items: int
    context: int = 200
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    user_ids: tuple[str, ...] = ()
    item_ids: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    item_counts: tuple[int, ...] = ()
    user_columns: tuple[Column, ...] = ()
    item_columns: tuple[Column, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return ()

    def to_dict(self) -> dict[str, Any]:
        return {k: _plain(v) for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InteractionSpec:
        """The spec in a checkpoint. Checkpoints are untrusted, so the values are validated.

        Raises:
            InputError: a value has the wrong type, is out of range, or contradicts another one.
        """
        spec: InteractionSpec = checked(cls, values)
        if not (1 <= spec.users < MOST and 1 <= spec.items < MOST and 1 <= spec.context <= 1 << 20):
            what = f"input has {spec.users} users, {spec.items} items, a context of {spec.context}"
            raise InputError(what, f"expected 1 to {MOST} of each, and a context of at most {1 << 20}")
        if not all(map(math.isfinite, (spec.low, spec.high, spec.mean))) or spec.low > spec.high:
            raise InputError(f"input has ratings from {spec.low} to {spec.high}", "expected a range of finite numbers")
        for name, given, count in (
            ("user_ids", spec.user_ids, spec.users),
            ("item_ids", spec.item_ids, spec.items),
            ("titles", spec.titles, spec.items),
            ("item_counts", spec.item_counts, spec.items),
        ):
            if len(given) not in (0, count):
                raise InputError(f"input has {len(given)} {name}", f"expected {count}")
        if min(spec.item_counts, default=0) < 0:
            raise InputError("input has an item count below 0", "expected a number of interactions")
        for column, count in [(c, spec.users) for c in spec.user_columns] + [
            (c, spec.items) for c in spec.item_columns
        ]:
            if len(column.codes) != count or any(not 0 <= k < len(column.values) for row in column.codes for k in row):
                raise InputError(f"input.{column.name} does not fit", f"expected values of {count} users or items")
        return spec

    def with_(self, **changes: Any) -> InteractionSpec:
        return replace(self, **changes)

    @classmethod
    def typical(cls) -> InteractionSpec:
        """The spec that the list of models counts parameters for: the size of MovieLens 100K."""
        return cls(943, 1682, 200, 1.0, 5.0, 3.5)

    def user_index(self, name: str) -> int:
        """The number of the user called `name`.

        Raises:
            InputError: there is no such user.
        """
        return _index(name, self.user_ids, self.users, "user")

    def item_index(self, name: str) -> int:
        """The number of the item called `name`.

        Raises:
            InputError: there is no such item.
        """
        return _index(name, self.item_ids, self.items, "item")

    def item_id(self, index: int) -> str:
        return self.item_ids[index] if self.item_ids else str(index)

    def user_id(self, index: int) -> str:
        return self.user_ids[index] if self.user_ids else str(index)

    def title(self, index: int) -> str:
        """The title of an item; its id where it has none."""
        return self.titles[index] if self.titles else self.item_id(index)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _index(name: str, ids: Sequence[str], count: int, what: str) -> int:
    if ids:
        if name in ids:
            return ids.index(name)
        raise InputError(f"no {what} {name!r}", f"expected one of {count:,}, such as {ids[0]} or {ids[-1]}")
    if name.isascii() and name.isdigit() and len(name) < 12 and int(name) < count:
        return int(name)
    raise InputError(f"no {what} {name!r}", f"expected a number from 0 to {count - 1}")


@runtime_checkable
class Recommends(Protocol):
    """A task that ranks the items of the catalogue for a user."""

    def scores(self, model: Any, users: Tensor, histories: Tensor) -> Tensor:
        """Scores (B,I) of every item for `users` (B,) with `histories` (B,S); higher is better."""
        ...


class NextItems(NamedTuple):
    """What a model of rankings is trained on: the item that follows each of a window.

    `targets` (B,L) int64 are item indices, negative where there is none; `seen` (B,S) all that the user interacted
    with, numbered from 1, which is never a negative; `noise` (B,) seeds the negatives; `loss` is per target.
    """

    targets: Tensor
    seen: Tensor
    noise: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]


class RanksItems(Protocol):
    """A model that ranks the catalogue for users by what they did so far."""

    def forward(self, user: Tensor, history: Tensor, wanted: NextItems | None = None) -> Tensor:
        """user (B,) and history (B,S) int64 -> scores (B,I); with `wanted`, the loss (B,L) of each of its targets.

        Items in a history are numbered from 1, oldest first; 0 is padding at the end. In training, S is L.
        """
        ...


@runtime_checkable
class SolvedFromData(Protocol):
    """A model whose weights are computed from the whole train split, in place of optimizer steps."""

    @property
    def solves(self) -> bool:
        """Whether this configuration of the model is solved; False: it is trained in steps."""
        ...

    def solve(self, train: Source) -> str:
        """Compute the weights; returns a line on how."""
        ...


def is_solved(model: Any) -> bool:
    """Whether `model`, as configured, is solved rather than trained in steps."""
    return isinstance(model, SolvedFromData) and model.solves


@runtime_checkable
class HasVectors(Protocol):
    """A model whose score is a dot product of a user's vector and an item's."""

    def item_vectors(self) -> Tensor:
        """(I,D) float."""
        ...

    def user_vectors(self, user: Tensor, history: Tensor) -> Tensor:
        """(B,D) float of `user` (B,) and `history` (B,S)."""
        ...


def everything(source: Source) -> Batch:
    """All samples of `source` as one batch."""
    import torch

    return source.gather(torch.arange(len(source)))
