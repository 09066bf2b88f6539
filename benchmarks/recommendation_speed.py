"""Epochs of recommenders by bigmodel and by a plain loop over a DataLoader, with the same models, in one run.

python benchmarks/recommendation_speed.py --data-dir DIR

The plain loop is what tutorials write: a Dataset that returns one sample, collated into batches; the same network,
optimizer, batch size, loss and number of threads. Prints samples (ratings, or items of users) per second, the median
epoch of three after one to warm up.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
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
from bigmodel_cli.engine.training.loop import train_step

EPOCHS = 4


class Samples(Dataset[Any]):
    """One sample at a time, as a Dataset gives them."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def plain(loader: DataLoader[Any], model: nn.Module, loss_of: Callable[[Any], tuple[Tensor, int]], lr: float) -> float:
    """Samples per second of the median epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    speeds = []
    for _ in range(EPOCHS):
        started, seen = time.perf_counter(), 0
        for batch in loader:
            loss, count = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss.item()
            seen += count
        speeds.append(seen / (time.perf_counter() - started))
    return statistics.median(speeds[1:])


def ours(root: Path, name: str, batch_size: int) -> float:
    """Samples per second of the median epoch of the loop that ``bigmodel train`` runs."""
    values = {
        "model": {"name": name}, "data": {"name": "movielens-100k", "dir": str(root)},
        "train": {"batch_size": batch_size, "epochs": EPOCHS, "clip_norm": 1.0},
        "placement": {"precision": "fp32", "device": "cpu"},
    }  # fmt: skip
    run = assemble(resolve([Layer("benchmark", values)]).recipe, measure=False)
    speeds = []
    for epoch in range(EPOCHS):
        started, seen = time.perf_counter(), 0
        run.progress.epoch = epoch
        for at, batch in enumerate(run.batches.steps(epoch, 0)):
            run.progress.batch_in_epoch = at
            result = train_step(run, batch)
            result.loss.item()
            seen += int(result.count)
            run.progress.step += 1
        speeds.append(seen / (time.perf_counter() - started))
    return statistics.median(speeds[1:])


def rating_rows(root: Path) -> tuple[InteractionSpec, list[tuple[int, int, float]]]:
    bundle = data.get("movielens-100k")(root, "rating_prediction")
    source = bundle.load["train"]()
    batch = source.gather(torch.arange(len(source)))
    return bundle.spec, list(zip(*(batch[k].tolist() for k in ("user", "item", "rating")), strict=True))


def ratings(root: Path) -> Iterator[tuple[str, float, float]]:
    spec, rows = rating_rows(root)
    loader = DataLoader(Samples(rows), batch_size=512, shuffle=True)
    for name in ("mf", "ncf", "dcn-v2"):
        model = models.get(name)(spec)

        def loss_of(batch: Any, model: nn.Module = model) -> tuple[Tensor, int]:
            user, item, rating = batch
            return F.mse_loss(model(user, item), rating.float()), len(user)

        yield name, plain(loader, model, loss_of, 3e-3), ours(root, name, 512)


def rankings(root: Path) -> Iterator[tuple[str, float, float]]:
    bundle = data.get("movielens-100k")(root, "recommendation")
    source, spec = bundle.load["train"](), bundle.spec
    users = [[i for i in row if i] for row in source.trained(torch.arange(spec.users)).tolist()]
    width = spec.context
    rows = [(u, *padded(row[max(0, end - width) : end], width)) for u, row in enumerate(users)
            for end in range(len(row), 0, -width)]  # fmt: skip
    loader = DataLoader(Samples(rows), batch_size=64, shuffle=True)
    for name in ("sasrec", "two-tower"):
        options = {"negatives": "all"} if name == "two-tower" else {}
        model = models.get(name)(spec, **options)

        def loss_of(batch: Any, model: nn.Module = model) -> tuple[Tensor, int]:
            user, history, targets = batch
            nothing = torch.zeros(len(user), 0, dtype=torch.int64)
            wanted = NextItems(targets, nothing, torch.zeros(len(user)), losses.get("cross_entropy")())
            count = int((targets >= 0).sum())
            return model(user, history, wanted).sum() / count, count

        yield name, plain(loader, model, loss_of, 2e-3), ours(root, name, 64)


def padded(row: list[int], width: int) -> tuple[Tensor, Tensor]:
    """What the model sees and what follows it, both padded to the window."""
    history = torch.tensor([0, *row[:-1]] + [0] * (width - len(row)))
    return history, torch.tensor([i - 1 for i in row] + [-100] * (width - len(row)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, required=True)
    root = parser.parse_args().data_dir
    sys.stdout.write("| model | plain DataLoader loop | bigmodel | times |\n|---|---|---|---|\n")
    for measured in (ratings(root), rankings(root)):
        for name, theirs, own in measured:
            sys.stdout.write(f"| {name} | {theirs:,.0f} | {own:,.0f} | {own / theirs:.1f} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
