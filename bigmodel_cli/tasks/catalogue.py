"""Code shared by the tasks on users and items: ids, and ranks in a catalogue. Shapes: B batch, I items, R held-out."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.interactions import InteractionSpec


def check_ids(model: InteractionSpec, data: InteractionSpec) -> None:
    """Check that every user and item of the data is the model's, in its place.

    Raises:
        InputError: the data has others.
    """
    for what, ours, theirs, known, given in (
        ("users", model.user_ids, data.user_ids, model.users, data.users),
        ("items", model.item_ids, data.item_ids, model.items, data.items),
    ):
        if given != known or ours != theirs:
            new = len(set(theirs) - set(ours)) or abs(given - known)
            raise InputError(f"{new:,} {what} are unknown to the model", f"it knows {known:,}", "bigmodel finetune")


def adopt(trained: InteractionSpec, data: InteractionSpec) -> tuple[InteractionSpec, list[str]]:
    """The spec for fine-tuning: the trained users and items in their places, new ones after them.

    Raises:
        InputError: the data does not begin with the trained ids.
    """
    if data.user_ids[: trained.users] != trained.user_ids or data.item_ids[: trained.items] != trained.item_ids:
        expected = "expected the checkpoint's ids first, as --data TABLE gives them"
        raise InputError("the data numbers users or items in another way than the checkpoint", expected)
    new = [
        f"{more:,} new {what}{'s' if more > 1 else ''}"
        for what, more in (("user", data.users - trained.users), ("item", data.items - trained.items))
        if more
    ]
    notes = [f"{' and '.join(new)}: what the model's tables gain for them starts at random"] if new else []
    counts = torch.zeros(data.items, dtype=torch.int64)
    for old in (trained.item_counts, data.item_counts):
        counts[: len(old)] += torch.tensor(old, dtype=torch.int64)
    titles = data.titles or (*trained.titles, *data.item_ids[trained.items :]) if trained.titles else data.titles
    kept = {"user_columns": trained.user_columns, "item_columns": trained.item_columns}
    same = data.users == trained.users and data.items == trained.items
    columns = {k: v for k, v in kept.items() if same and not (data.user_columns or data.item_columns)}
    return data.with_(
        context=trained.context, titles=titles, item_counts=tuple(counts.tolist()),
        low=min(trained.low, data.low), high=max(trained.high, data.high), **columns,
    ), notes  # fmt: skip


def hide(scores: Tensor, history: Tensor) -> Tensor:
    """`scores` (B,I) with -inf for the items of `history` (B,S), numbered from 1; 0 is padding."""
    padded = torch.cat([scores.new_zeros(len(scores), 1), scores], 1)
    return padded.scatter(1, history, float("-inf"))[:, 1:]


def ranks(scores: Tensor, relevant: Tensor) -> Tensor:
    """(B,R) the rank, from 1, of each of the `relevant` items (B,R); 0 for padding (-1).

    Ties are ranked by item number, as a stable sort does: a model that scores all items equally gains nothing.
    """
    own = scores.gather(1, relevant.clamp(min=0))
    place = torch.arange(scores.shape[1], device=scores.device)
    found = []
    for r in range(relevant.shape[1]):
        score = own[:, r : r + 1]
        earlier = (scores == score) & (place < relevant[:, r : r + 1])
        found.append(((scores > score) | earlier).sum(1) + 1)
    return torch.stack(found, 1) * (relevant >= 0)
