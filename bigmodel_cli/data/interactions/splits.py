"""Splits of interactions into train, validation and test. Shapes: N interactions, U users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.data.interactions.table import Table, Ties

Split = Literal["auto", "fold", "last", "random"]
TRAIN, VAL, TEST = 0, 1, 2
HELD = 0.1  # share of a user's interactions that a random split holds out for each of val and test
TIES = {
    "hashed": "a fixed hash of user and item",
    "item": "the order of the item ids",
    "file": "the order of the file",
}


@dataclass(frozen=True)
class Parts:
    """`part` (N,) int64 says which split each interaction is in; `notes` say what a reader of results must know."""

    part: Tensor
    notes: tuple[str, ...]

    def rows(self, *parts: int) -> Tensor:
        """The positions of the interactions in any of `parts`."""
        return torch.isin(self.part, torch.tensor(parts)).nonzero().flatten()


def leave_last_out(table: Table, ties: Ties) -> Parts:
    """The last interaction of each user tests, the one before it validates; users with fewer than 3 only train."""
    count = table.user.bincount(minlength=table.users)
    from_end = count.cumsum(0)[table.user] - torch.arange(len(table))  # 1 for a user's last
    enough = (count >= 3)[table.user]
    part = torch.zeros(len(table), dtype=torch.int64)
    part[enough & (from_end == 1)] = TEST
    part[enough & (from_end == 2)] = VAL
    few = int(((count > 0) & (count < 3)).sum())
    short = f"; {counted(few, 'user')} with fewer than 3 interactions only train" if few else ""
    notes = [f"leave-last-out{short}"]
    if table.has_times and (tied := table.tied()):
        share = f"{tied:,} of {len(table):,} interactions share their time with another one of the same user"
        notes.append(f"{share}; equal times are in the order of {TIES[ties]} (data.ties)")
    return Parts(part, (*notes, *_cold(table, part)))


def random_by_user(table: Table, seed: int, test: bool, val: bool) -> Parts:
    """A tenth of each user's interactions, at random but at most all but one, tests, and another one validates."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(table), generator=generator)
    order = order[table.user[order].argsort(stable=True)]  # shuffled within each user
    count = table.user.bincount(minlength=table.users)
    position = torch.arange(len(table)) - (count.cumsum(0) - count)[table.user[order]]
    held = (count.float() * HELD).round().long().clamp(min=1)
    held = torch.where(count > held * (test + val), held, 0)[table.user[order]]
    part = torch.zeros(len(table), dtype=torch.int64)
    if test:
        part[order[position < held]] = TEST
    if val:
        part[order[(position >= held * test) & (position < held * (test + val))]] = VAL
    what = " and ".join(name for name, wanted in (("tests", test), ("validates", val)) if wanted)
    return Parts(part, (f"random by user: a tenth of each user's interactions {what}", *_cold(table, part)))


def published_fold(table: Table, in_test: Tensor, name: str, val: bool) -> Parts:
    """The split of a published file: `in_test` (N,) bool; with `val`, a tenth of each user's others validates."""
    part = torch.where(in_test, TEST, TRAIN)
    if val:
        rest = (part == TRAIN).nonzero().flatten()
        part[rest] = random_by_user(table.at(rest), 0, False, True).part
    return Parts(part, (f"published split {name}", *_cold(table, part)))


def _cold(table: Table, part: Tensor) -> tuple[str, ...]:
    """A line on users and items that are tested but never trained."""
    held, train = part == TEST, part == TRAIN
    notes = []
    for what, code, count in (("users", table.user, table.users), ("items", table.item, table.items)):
        trained = code[train].bincount(minlength=count) > 0
        cold = ~trained[code[held]]
        if cold.any():
            number = len(code[held][cold].unique())
            notes.append(f"{number:,} cold {what}, in {int(cold.sum()):,} of {int(held.sum()):,} test interactions")
    return ("; ".join(notes),) if notes else ()


def choose_split(table: Table, split: Split, ranking: bool, ties: Ties, seed: int) -> Parts:
    """`split` of a table that has no published one; auto: leave-last-out for ranking, else random by user.

    Raises:
        InputError: the table has no times for leave-last-out, or no published split.
    """
    if split == "fold":
        raise InputError("data.split = fold: the data has no published split", "expected last or random")
    if split == "last" or (split == "auto" and ranking):
        parts = leave_last_out(table, ties)
    else:
        parts = random_by_user(table, seed, test=True, val=ranking)
    if not len(parts.rows(TRAIN)) or not len(parts.rows(TEST)):
        raise InputError(f"{len(table)} interactions of {table.users} users", "expected some users with 3 or more")
    return parts
