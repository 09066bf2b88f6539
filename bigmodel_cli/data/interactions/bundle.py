"""A table of interactions and its split as a data bundle, in the samples that a task needs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.interactions import Column, InteractionSpec
from bigmodel_cli.core.types import DataBundle, Spec
from bigmodel_cli.data.interactions.sources import HeldOut, Ragged, Ratings, Windows
from bigmodel_cli.data.interactions.splits import TEST, TRAIN, VAL, Parts
from bigmodel_cli.data.interactions.table import Table

RATINGS, RANKING = "rating_prediction", "recommendation"
"""The task whose samples are single ratings, and the one whose samples are users."""
Context = Annotated[int, Field(ge=1, le=1 << 16, description="latest items of a user that sequence models read")]


def build_bundle(
    table: Table,
    parts: Parts,
    task: str,
    context: int,
    fingerprint: str,
    *,
    titles: Sequence[str] = (),
    user_columns: Sequence[Column] = (),
    item_columns: Sequence[Column] = (),
    notes: Sequence[str] = (),
) -> DataBundle:
    """The splits of `table` for `task`: single ratings for rating prediction, else users with what they did.

    Raises:
        InputError: nothing is left to train on.
    """
    train = table.at(parts.rows(TRAIN))
    if not len(train):
        raise InputError("no interaction to train on", "expected a train split")
    spec = InteractionSpec(
        users=table.users,
        items=table.items,
        context=context,
        low=float(table.rating.min()),
        high=float(table.rating.max()),
        mean=float(train.rating.double().mean()),
        user_ids=table.user_ids,
        item_ids=table.item_ids,
        titles=tuple(titles),
        item_counts=tuple(train.item.bincount(minlength=table.items).tolist()),
        user_columns=tuple(user_columns),
        item_columns=tuple(item_columns),
    )
    duplicates = (
        [f"{table.duplicates:,} repeated pairs of user and item: the latest counts"] if table.duplicates else []
    )
    make = _ratings if task == RATINGS else _users
    if task != RATINGS and spec.low < spec.high:
        duplicates.append("ranking: every interaction counts the same, whatever its rating")
    names = {"train": TRAIN, "val": VAL, "test": TEST}
    load = {
        name: functools.partial(make, table, parts, spec, name) for name, part in names.items() if len(parts.rows(part))
    }
    return DataBundle(spec, load, fingerprint, [*notes, *parts.notes, *duplicates])


def _numbered(table: Table) -> Ragged:
    return Ragged.by_user(table.user, table.item + 1, table.users)


def _ratings(table: Table, parts: Parts, spec: InteractionSpec, split: str) -> Ratings:
    earlier = {"train": (TRAIN,), "val": (TRAIN,), "test": (TRAIN, VAL)}[split]
    rows = table.at(parts.rows({"train": TRAIN, "val": VAL, "test": TEST}[split]))
    train = _numbered(table.at(parts.rows(TRAIN)))
    return Ratings(train, _numbered(table.at(parts.rows(*earlier))), _numbered(table), rows, split)


def _users(table: Table, parts: Parts, spec: InteractionSpec, split: str) -> Windows | HeldOut:
    every, train = _numbered(table), _numbered(table.at(parts.rows(TRAIN)))
    if split == "train":
        return Windows.of(train, every, spec.context, split)
    earlier = (TRAIN,) if split == "val" else (TRAIN, VAL)
    past = _numbered(table.at(parts.rows(*earlier)))
    rows = table.at(parts.rows(VAL if split == "val" else TEST))
    held = Ragged.by_user(rows.user, rows.item, table.users)
    return HeldOut(train, past, every, (held.lengths > 0).nonzero().flatten(), held, split)


def in_ids_of(like: Spec | None, table: Table) -> Table:
    """`table` with the users and items of `like` in their places and new ones after them, for fine-tuning.

    Without a `like` of interactions, `table` itself.
    """
    if not isinstance(like, InteractionSpec) or not like.user_ids or not like.item_ids:
        return table
    users, user_of = _merged(like.user_ids, table.user_ids)
    items, item_of = _merged(like.item_ids, table.item_ids)
    moved = replace(table, user=user_of[table.user], item=item_of[table.item], user_ids=users, item_ids=items)
    return moved.at(moved.user.argsort(stable=True))


def _merged(known: tuple[str, ...], found: tuple[str, ...]) -> tuple[tuple[str, ...], torch.Tensor]:
    """All ids, the `known` ones first, and where each of `found` is among them."""
    place = {name: i for i, name in enumerate(known)}
    every = (*known, *(name for name in found if name not in place))
    place = {name: i for i, name in enumerate(every)}
    return every, torch.tensor([place[name] for name in found], dtype=torch.int64)
