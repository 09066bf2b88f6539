"""Recommendations for users of the data, for ``predict --user`` and ``explain --user``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.arguments.recipe_layers import checkpoint_recipe
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.commands.arguments.options import RunOptions
    from bigmodel_cli.core.interactions import InteractionSpec
    from bigmodel_cli.core.resolve import Layer
    from bigmodel_cli.core.sources import HistorySource
    from bigmodel_cli.engine.build.load import TrainedModel


@dataclass(frozen=True)
class Recommended:
    """A user's recommendations: item indices with their scores, best first; `history` (S,) numbers items from 1."""

    user: int
    history: Tensor
    items: list[int]
    scores: list[float]


def show_recommendations(
    trained: TrainedModel, options: RunOptions, users: Sequence[str], other_inputs: bool, top: int, json: bool
) -> None:
    """Print the `top` items for each of `users`, without what they have seen; `other_inputs` are refused.

    Raises:
        InputError: no user is named, or the model recommends nothing; after the others, that a user is unknown.
    """
    if not users or other_inputs:
        what = "--user with files or texts" if users else f"{trained.path} recommends items to users"
        raise InputError(what, "expected --user ID alone", "bigmodel predict --help")
    spec, errors = interaction_spec(trained), list[InputError]()
    for found in recommend(trained, options.flag_layers(), users, top, errors):
        rows = [
            (str(place), spec.item_id(i), spec.title(i), f"{score:.4f}")
            for place, (i, score) in enumerate(zip(found.items, found.scores, strict=True), 1)
        ]
        if json:
            values = [{"item": i, "title": title, "score": float(score)} for _, i, title, score in rows]
            console.print_json({"user": spec.user_id(found.user), "seen": len(found.history), "top": values})
            continue
        console.say(f"user {spec.user_id(found.user)}: {_left_out(len(found.history), trained.task.inputs)}")
        console.show(console.table(None, ("", "item", "title", "score"), rows, right=False))
    console.report(errors)


def _left_out(seen: int, inputs: Sequence[str]) -> str:
    if not seen:
        anybody = ", so these are for anybody" if "history" in inputs else ", so nothing is left out"
        return f"nothing seen in this data{anybody}"
    return f"{seen:,} items seen are left out" if seen > 1 else "the one item seen is left out"


def interaction_spec(trained: TrainedModel) -> InteractionSpec:
    """The users and items of the model.

    Raises:
        InputError: it is a model of something else.
    """
    from bigmodel_cli.core.interactions import InteractionSpec, Recommends

    spec = trained.task.spec
    if not isinstance(spec, InteractionSpec) or not isinstance(trained.task, Recommends):
        what = f"{trained.path}: {trained.task.name.replace('_', ' ')}"
        raise InputError(what, "expected a recommender for --user")
    return spec


def history_source(trained: TrainedModel, layers: list[Layer]) -> HistorySource:
    """The interactions of the checkpoint's data.

    Raises:
        InputError: the data has no histories.
    """
    from bigmodel_cli.core.sources import HistorySource
    from bigmodel_cli.engine.build.data import load_data

    recipe = checkpoint_recipe(trained, layers)
    bundle = load_data(recipe.data, trained.task.spec, recipe.task)
    trained.task.for_data(bundle.spec)
    source = bundle.load["train"]()
    if not isinstance(source, HistorySource):
        raise InputError(f"data {recipe.data.name} has no histories", "expected interactions")
    return source


def recommend(
    trained: TrainedModel, layers: list[Layer], users: Sequence[str], top: int, errors: list[InputError]
) -> list[Recommended]:
    """The `top` items for each of `users`, ranked over all that the user has not seen in the whole data set.

    That a user is unknown is added to `errors`.
    """
    import torch

    spec, chosen, found = interaction_spec(trained), list[int](), list[Recommended]()
    for name in users:
        try:
            chosen.append(spec.user_index(name))
        except InputError as error:
            errors.append(error)
    if not chosen:
        return found
    source = history_source(trained, layers)
    for user in chosen:
        history = source.known(torch.tensor([user]))
        scores = masked_scores(trained, user, history)
        order = scores.sort(descending=True, stable=True)
        count = min(top, int(scores.isfinite().sum()))
        items, values = order.indices[:count].tolist(), order.values[:count].tolist()
        found.append(Recommended(user, history[history > 0], items, values))
    return found


def masked_scores(trained: TrainedModel, user: int, history: Tensor) -> Tensor:
    """(I,) the score of every item for `user` with `history` (1,S); -inf for what is in it."""
    import torch

    from bigmodel_cli.tasks.catalogue import hide

    task: Any = trained.task
    with torch.inference_mode():
        return hide(task.scores(trained.model, torch.tensor([user]), history), history)[0]


def explain_recommendations(
    trained: TrainedModel, users: Sequence[str], other_inputs: bool, top: int, json: bool, data_dir: Path | None
) -> None:
    """Print the items of each user's history that weighed most: how much an item's score falls without each.

    Raises:
        InputError: the model's scores do not depend on the history; after the others, that a user is unknown or has
            seen nothing.
    """
    from bigmodel_cli.core.resolve import Layer

    if not users or other_inputs:
        raise InputError(f"{trained.path} is explained by user", "expected --user ID alone")
    spec, errors = interaction_spec(trained), list[InputError]()
    layers = [Layer("--data-dir", {"data": {"dir": str(data_dir)}})] if data_dir else []
    for found in recommend(trained, layers, users, 1 if not json else top, errors):
        if not found.items or not len(found.history):
            seen = "every item" if len(found.history) else "no item"
            what = f"user {spec.user_id(found.user)} has seen {seen} of this data"
            errors.append(InputError(what, "expected some of them"))
            continue
        for item, score in zip(found.items, found.scores, strict=True):
            weights = _weights(trained, found, item, score)
            if not weights.any():
                what = f"{trained.recipe.model.name} does not read the user's history"
                raise InputError(what, "expected two-tower, sasrec or ease")
            best = weights.abs().argsort(descending=True, stable=True)[:top].tolist()
            rows = [(spec.item_id(i), spec.title(i), float(weights[n]))
                    for n in best for i in [int(found.history[n]) - 1]]  # fmt: skip
            if json:
                causes = [{"item": i, "title": title, "weight": w} for i, title, w in rows]
                console.print_json({"user": spec.user_id(found.user), "item": spec.item_id(item),
                                    "title": spec.title(item), "score": score, "because": causes})  # fmt: skip
                continue
            console.say(f"user {spec.user_id(found.user)}: {spec.title(item)}, score {score:.4f}")
            cells = [(i, title, f"{w:+.4f}") for i, title, w in rows]
            console.show(console.table("what the score loses without", ("item", "title", "weight"), cells, right=False))
    console.report(errors)


def _weights(trained: TrainedModel, found: Recommended, item: int, score: float) -> Tensor:
    """(S,) how much the score of `item` falls when each item of the history is left out."""
    import torch

    task: Any = trained.task
    size = len(found.history)
    keep = torch.arange(size).expand(size, -1)[~torch.eye(size, dtype=torch.bool)].view(size, size - 1)
    without = torch.cat([found.history[keep], torch.zeros(size, 1, dtype=torch.int64)], 1)
    parts = []
    with torch.inference_mode():
        for rows in without.split(64):
            scores = task.scores(trained.model, torch.full((len(rows),), found.user), rows)
            parts.append(scores[:, item])
    return score - torch.cat(parts)
