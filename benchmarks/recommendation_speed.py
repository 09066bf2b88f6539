"""Epochs of recommenders by bigmodel and by a plain loop over a DataLoader, with the same models, in one run.

python benchmarks/recommendation_speed.py --data-dir DIR [MODEL ...]

The plain loop is what tutorials write: a Dataset whose ``__getitem__`` indexes tensors (ratings) or pads a user's items
to the window (rankings), ``DataLoader(shuffle=True)`` with as many workers as are faster, none or one a core, and
AdamW; the network, loss, batch size and number of threads are those of bigmodel's defaults. "tuples" is the same with
a Dataset over a list of Python tuples, which collates faster. Prints samples (ratings, or items of users) per second:
the median of three epochs after one to warm up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bigmodel_cli.core.interactions import InteractionSpec, NextItems
from bigmodel_cli.core.registry import data, losses, models
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.loop import settle, train_step

EPOCHS = 4
RATERS, RANKERS = ("mf", "ncf", "dcn-v2"), ("sasrec", "two-tower")
Loss = Callable[[Any], tuple[Tensor, int]]


class Ratings(Dataset[Any]):
    """A user, an item and a rating at a time."""

    def __init__(self, user: Tensor, item: Tensor, rating: Tensor) -> None:
        self.user, self.item, self.rating = user, item, rating

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.user[index], self.item[index], self.rating[index]


class Tuples(Dataset[Any]):
    """The same from a list of Python tuples."""

    def __init__(self, rows: list[tuple[int, int, float]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, int, float]:
        return self.rows[index]


class Histories(Dataset[Any]):
    """A user's window of items at a time: what the model sees and what follows, padded to the window."""

    def __init__(self, windows: list[tuple[int, list[int]]], length: int) -> None:
        self.windows, self.length = windows, length

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        user, items = self.windows[index]
        rest = self.length - len(items)
        history = torch.tensor([0, *items[:-1]] + [0] * rest)
        return user, history, torch.tensor([i - 1 for i in items] + [-100] * rest)


def plain(rows: Dataset[Any], model: nn.Module, loss_of: Loss, recipe: Any, workers: int) -> float:
    """Samples per second of the median epoch."""
    loader = DataLoader(rows, batch_size=recipe.train.batch_size, shuffle=True, num_workers=workers)
    options = recipe.optimizer.options
    optimizer = torch.optim.AdamW(model.parameters(), lr=options["lr"], weight_decay=options["weight_decay"])
    speeds = []
    for _ in range(EPOCHS):
        started, seen = time.perf_counter(), 0
        for batch in loader:
            loss, count = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            if recipe.train.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.train.clip_norm)
            optimizer.step()
            loss.item()
            seen += count
        speeds.append(seen / (time.perf_counter() - started))
    return statistics.median(speeds[1:])


def recipe_of(root: Path, name: str) -> Any:
    values = {
        "model": {"name": name}, "data": {"name": "movielens-100k", "dir": str(root)}, "train": {"epochs": EPOCHS},
        "placement": {"precision": "fp32", "device": "cpu"},
    }  # fmt: skip
    return resolve([Layer("benchmark", values)]).recipe


def ours(recipe: Any) -> float:
    """Samples per second of the median epoch of the loop that ``bigmodel train`` runs."""
    run = assemble(recipe, measure=False)
    run.train_mode()
    speeds = []
    for epoch in range(EPOCHS):
        started = time.perf_counter()
        run.progress.epoch, run.progress.loss_count = epoch, 0
        for at, batch in enumerate(run.batches.steps(epoch, 0)):
            run.progress.batch_in_epoch = at
            run.pending_steps.append(train_step(run, batch))
            run.progress.step += 1
            settle(run)
        speeds.append(run.progress.loss_count / (time.perf_counter() - started))
    return statistics.median(speeds[1:])


def rating_sets(root: Path) -> tuple[InteractionSpec, dict[str, Dataset[Any]]]:
    bundle = data.get("movielens-100k")(root, "rating_prediction")
    source = bundle.load["train"]()
    batch = source.gather(torch.arange(len(source)))
    columns = [batch[k] for k in ("user", "item", "rating")]
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    return bundle.spec, {"tensors": Ratings(*columns), "tuples": Tuples(rows)}


def ranking_sets(root: Path) -> tuple[InteractionSpec, dict[str, Dataset[Any]]]:
    bundle = data.get("movielens-100k")(root, "recommendation")
    source, spec = bundle.load["train"](), bundle.spec
    users = [[i for i in row if i] for row in source.trained(torch.arange(spec.users)).tolist()]
    windows = [(u, row[max(0, end - spec.context) : end]) for u, row in enumerate(users)
               for end in range(len(row), 0, -spec.context)]  # fmt: skip
    return spec, {"tensors": Histories(windows, spec.context)}


def rating_loss(model: nn.Module) -> Loss:
    def loss_of(batch: Any) -> tuple[Tensor, int]:
        user, item, rating = batch
        return F.mse_loss(model(user, item), rating.float()), len(user)

    return loss_of


def ranking_loss(model: nn.Module) -> Loss:
    """What the user's window holds is no negative, as a plain script knows it."""

    def loss_of(batch: Any) -> tuple[Tensor, int]:
        user, history, targets = batch
        seen = torch.cat([history, targets.clamp(min=-1) + 1], 1)
        wanted = NextItems(targets, seen, torch.zeros(len(user)), losses.get("cross_entropy")())
        count = int((targets >= 0).sum())
        return model(user, history, wanted).sum() / count, count

    return loss_of


def measure(root: Path, name: str) -> None:
    rates = name in RATERS
    spec, sets = (rating_sets if rates else ranking_sets)(root)
    recipe, found = recipe_of(root, name), dict[str, float]()
    for kind, rows in sets.items():
        speeds = []
        for workers in (0, os.cpu_count() or 1):
            torch.manual_seed(0)
            model = models.get(name)(spec)
            speeds.append(plain(rows, model, (rating_loss if rates else ranking_loss)(model), recipe, workers))
        found[kind] = max(speeds)
    own = ours(recipe)
    tuples = f"{found['tuples']:,.0f} | {own / found['tuples']:.1f}" if "tuples" in found else " | "
    sys.stdout.write(f"| {name} | {found['tensors']:,.0f} | {own:,.0f} | {own / found['tensors']:.1f} | {tuples} |\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("model", nargs="*", help=", ".join((*RATERS, *RANKERS)))
    arguments = parser.parse_args()
    sys.stdout.write(
        "| model | plain DataLoader loop | bigmodel | times | with tuples | times |\n|---|---|---|---|---|---|\n"
    )
    for name in arguments.model or (*RATERS, *RANKERS):
        measure(arguments.data_dir, name)


if __name__ == "__main__":
    main()
