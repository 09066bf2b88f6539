"""Synthetic interactions with catalogues of any size, for planning and benchmarks. Nothing is stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bigmodel_cli.core.interactions import InteractionSpec
from bigmodel_cli.core.keyed_random import uniforms
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.types import Batch, DataBundle, SampleKey
from bigmodel_cli.data.interactions.bundle import RANKING, RATINGS
from bigmodel_cli.data.interactions.sources import PAD

Count = Annotated[int, Field(gt=0, lt=1 << 31)]
TAIL = 3.0  # exponent of the long tail: item = catalogue * uniform^TAIL


@dataclass(frozen=True)
class RandomUsers:
    """`users` users with `length` items each, determined by the user's number; popular items come first.

    A user's items are near each other in the catalogue, so that there is something to learn.
    """

    users: int
    items: int
    length: int
    split: str
    ratings: bool

    def __len__(self) -> int:
        return self.users * self.length if self.ratings else self.users

    def _items(self, users: Tensor, more: int = 0) -> Tensor:
        """(B,length + more) item indices."""
        drawn = uniforms(SampleKey(0, 0, users), *range(self.length + more + 1)).t().double()
        centre = drawn[:, :1] ** TAIL
        spread = (drawn[:, 1:] - 0.5) * 0.02
        return ((centre + spread).clamp(0, 1) * (self.items - 1)).long()

    def histories(self, users: Tensor) -> Tensor:
        return self._items(users) + 1

    known = trained = histories

    def gather(self, indices: Tensor) -> Batch:
        if self.ratings:
            user, place = indices // self.length, indices % self.length
            item = self._items(user).gather(1, place[:, None])[:, 0]
            return {"user": user, "item": item, "rating": (1 + (user + item) % 5).float(), "index": indices}
        items = self._items(indices, 1)
        seen = items[:, :-1] + 1
        if self.split == "train":
            rows = torch.cat([torch.zeros(len(items), 1, dtype=torch.int64), seen], 1)
            return {"user": indices, "items": rows, "seen": seen, "index": indices}
        repeated = (items[:, -1:] == items[:, :-1]).any(1, keepdim=True)
        return {
            "user": indices, "history": seen, "relevant": items[:, -1:].masked_fill(repeated, PAD), "index": indices,
        }  # fmt: skip

    def name(self, index: int) -> str:
        return f"{self.split}[{index}]"


@data.register(files=(), kind="interactions")
def synthetic_interactions(
    root: Path,
    task: str = RANKING,
    *,
    users: Count = 10_000,
    items: Count = 10_000,
    length: Annotated[int, Field(ge=1, le=1 << 12, description="items of each user")] = 20,
    held_out: Annotated[int, Field(gt=0, description="users that validate, at most all")] = 512,
) -> DataBundle:
    """Random interactions with a catalogue of any size: for `plan` and speed measurements, without a file."""
    ratings = task == RATINGS
    low, high, mean = (1.0, 5.0, 3.0) if ratings else (1.0, 1.0, 1.0)
    spec = InteractionSpec(users, items, length, low, high, mean)
    return DataBundle(
        spec,
        {
            "train": lambda: RandomUsers(users, items, length, "train", ratings),
            "val": lambda: RandomUsers(min(users, held_out), items, length, "val", ratings),
        },
        f"synthetic {users} {items} {length} {task}",
    )
