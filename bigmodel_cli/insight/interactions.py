"""What is in a table of interactions. Shapes: N interactions, U users, I items."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.interactions import InteractionSpec
from bigmodel_cli.core.types import DataBundle
from bigmodel_cli.data.interactions.sources import Ratings


def figures(bundle: DataBundle) -> dict[str, Any]:
    """Counts and shares of the interactions in all splits of `bundle`, which is cut for rating prediction.

    A share is a float, a count an int.
    """
    splits = [load() for load in bundle.load.values()]
    tables = [split.table for split in splits if isinstance(split, Ratings)]
    spec = bundle.spec
    assert tables and isinstance(spec, InteractionSpec)
    user, item, rating, time = (torch.cat([getattr(t, name) for t in tables]) for name in
                                ("user", "item", "rating", "time"))  # fmt: skip
    per_user, per_item = user.bincount(minlength=spec.users), item.bincount(minlength=spec.items)
    values, counts = rating.unique(return_counts=True)
    found: dict[str, Any] = {
        "interactions": len(user), "users": spec.users, "items": spec.items,
        "density": len(user) / (spec.users * spec.items),
        "items per user": _spread(per_user), "users per item": _spread(per_item),
        "items without an interaction": int((per_item == 0).sum()),
        "interactions of the most popular tenth of items": _head(per_item),
        "items with fewer than 5 interactions": float((per_item < 5).double().mean()),
        "ratings": ", ".join(f"{v:g}: {n / len(user):.0%}" for v, n in zip(values.tolist()[:10], counts.tolist(),
                                                                          strict=False)),
    }  # fmt: skip
    if tables[0].has_times:
        found |= _in_time(user, time)
    return found


def _spread(counts: Tensor) -> str:
    low, middle, high = (int(x) for x in (counts.min(), counts.median(), counts.max()))
    return f"{low:,} to {high:,}, median {middle:,}"


def _head(per_item: Tensor) -> float:
    head = max(1, len(per_item) // 10)
    return float(per_item.sort(descending=True).values[:head].sum() / per_item.sum())


def _in_time(user: Tensor, time: Tensor) -> dict[str, Any]:
    """Ties, and how leave-last-out leaks: what is trained on that happened after a test interaction."""
    order = time.argsort(stable=True)
    order = order[user[order].argsort(stable=True)]
    user, time = user[order], time[order]
    same = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    none = torch.zeros(1, dtype=torch.bool)
    tied = torch.cat([none, same]) | torch.cat([same, none])
    last = torch.cat([user[1:] != user[:-1], ~none])
    late = time[~last].max() if (~last).any() else time.min()
    return {
        "interactions at the same time as another of the user": float(tied.double().mean()),
        "users whose last place is a tie": float(tied[last].double().mean()),
        "leave-last-out: tests before the latest train interaction of others": float(
            (time[last] < late).double().mean()
        ),
    }
