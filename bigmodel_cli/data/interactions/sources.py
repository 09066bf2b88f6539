"""Splits of interactions as samples: single ratings, windows of a user's items, and users with held-out items.

Shapes: N samples, B batch, U users, S interactions of a user, L window, R held-out items.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bigmodel_cli.core.types import Batch
from bigmodel_cli.data.interactions.table import Table

PAD = -1  # after the last item of a window, and after the last held-out item


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, one after the other: row u is ``values[offsets[u]:offsets[u + 1]]``."""

    values: Tensor
    offsets: Tensor

    @classmethod
    def by_user(cls, user: Tensor, values: Tensor, users: int) -> Ragged:
        """`values` (N,) grouped by `user` (N,), which is sorted."""
        count = user.bincount(minlength=users)
        return cls(values, torch.cat([count.new_zeros(1), count.cumsum(0)]))

    @property
    def lengths(self) -> Tensor:
        return self.offsets.diff()

    def slices(self, start: Tensor, length: Tensor, fill: int, width: int | None = None) -> Tensor:
        """(B,width) of `values`: `length` (B,) of them from `start` (B,) on, then `fill`."""
        width = int(length.max()) if width is None else width
        column = torch.arange(max(width, 1))
        inside = column < length[:, None]
        at = (start[:, None] + column).clamp(max=max(len(self.values) - 1, 0))
        if not len(self.values):
            return torch.full(at.shape, fill)
        return torch.where(inside, self.values[at], fill)

    def rows(self, index: Tensor, fill: int, width: int | None = None) -> Tensor:
        """The rows at `index` (B,), padded with `fill`."""
        return self.slices(self.offsets[index], self.lengths[index], fill, width)


@dataclass(frozen=True)
class Interactions:
    """Item numbers from 1, by user: of the train split, before this split, and over the whole data set."""

    train: Ragged
    past: Ragged
    all: Ragged

    def trained(self, users: Tensor) -> Tensor:
        return self.train.rows(users, 0)

    def histories(self, users: Tensor) -> Tensor:
        return self.past.rows(users, 0)

    def known(self, users: Tensor) -> Tensor:
        return self.all.rows(users, 0)


@dataclass(frozen=True)
class Ratings(Interactions):
    """One sample per rating: ``user``, ``item`` (B,) int64 and ``rating`` (B,) float32."""

    table: Table
    split: str
    sample_bytes = 28

    def __len__(self) -> int:
        return len(self.table)

    def gather(self, indices: Tensor) -> Batch:
        user, item, rating = (x.index_select(0, indices) for x in (self.table.user, self.table.item, self.table.rating))
        return {"user": user, "item": item, "rating": rating, "index": indices}

    def name(self, index: int) -> str:
        return f"{self.split}[{index}]"


@dataclass(frozen=True)
class Windows(Interactions):
    """Up to `context` consecutive items of a user per sample, with the one before them; long histories give several.

    ``items`` (B,L+1) int64 holds item numbers from 1: first the item before the window (0 for none), then the
    window, then PAD. ``seen`` (B,S) holds all that the user interacted with, so that no positive is drawn as a
    negative.
    """

    user: Tensor
    start: Tensor
    size: Tensor
    split: str

    @classmethod
    def of(cls, past: Ragged, every: Ragged, context: int, split: str) -> Windows:
        """Cut each user's items into windows from the end, so that the latest items are in a full one."""
        count = -(-past.lengths // context)
        user = torch.repeat_interleave(torch.arange(len(count)), count)
        back = torch.arange(len(user)) - (count.cumsum(0) - count)[user]  # 0 for a user's latest window
        end = past.lengths[user] - back * context
        start = (end - context).clamp(min=0)
        return cls(past, past, every, user, start, end - start, split)

    @cached_property
    def lengths(self) -> Tensor:
        return self.size

    def __len__(self) -> int:
        return len(self.user)

    def gather(self, indices: Tensor) -> Batch:
        user, start, size = self.user[indices], self.start[indices], self.size[indices]
        first = (start > 0).long()  # the item before the window, where there is one
        rows = self.past.slices(self.past.offsets[user] + start - first, size + first, PAD, int(size.max()) + 1)
        shifted = torch.cat([torch.zeros(len(rows), 1, dtype=torch.int64), rows[:, :-1]], 1)
        items = torch.where(first[:, None].bool(), rows, shifted)
        return {"user": user, "items": items, "seen": self.past.rows(user, 0), "index": indices}

    def name(self, index: int) -> str:
        return f"{self.split}[{index}]"


@dataclass(frozen=True)
class HeldOut(Interactions):
    """One sample per user with held-out items: ``history`` (B,S) before them, ``relevant`` (B,R) item indices.

    R is the same for the whole split, so that the outputs of its batches join. Users are `index`ed into `user` (N,).
    """

    user: Tensor
    held: Ragged
    split: str

    def __len__(self) -> int:
        return len(self.user)

    @cached_property
    def most(self) -> int:
        return int(self.held.lengths.max())

    def gather(self, indices: Tensor) -> Batch:
        user = self.user[indices]
        return {
            "user": user, "history": self.histories(user), "relevant": self.held.rows(user, PAD, self.most),
            "index": indices,
        }  # fmt: skip

    def name(self, index: int) -> str:
        return f"{self.split}[{index}]"
