"""Rankings by implicit's BPR and RecTools' SASRec, in an environment of their own: implicit, rectools[torch].

python benchmarks/peers/recommenders.py split.npz ranks.json

`split.npz` holds, for every user, the items in the order of time without the last two, the last but one and the last:
train (N,2) user and item, val (U,) and test (U,). Settings are chosen on val; the test is read once a method.
A method whose row is in ranks.json already is left as it is, and one that is not installed is passed over. What each
setting recommends is kept in ranks.tried.json, so that a run that was stopped goes on with the next.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

DEPTH = 10
SASRECS = ((64, 2, 100, 64, (25, 50, 75, 100)), (256, 4, 100, 128, (25, 50)))
"""Factors, heads, latest items of a user, batch size and the epochs to look at; the second are RecTools' defaults."""
Top = np.ndarray
"""(U,DEPTH) item indices, best first, without what was seen."""
Tried = Iterator[tuple[str, Callable[[np.ndarray], Top]]]
"""Settings, and what ranks after given interactions (N,2) until the next settings are asked for."""
Method = Callable[[np.ndarray, int, int, set[str]], Tried]
"""Of the train split, the numbers of users and items, and the settings that need no run."""


def ndcg(top: Top, wanted: np.ndarray) -> np.ndarray:
    """(U,) NDCG@10 with one item wanted per user."""
    hit = top == wanted[:, None]
    return np.where(hit.any(1), 1 / np.log2(hit.argmax(1) + 2), 0.0)


def bpr(train: np.ndarray, users: int, items: int, done: set[str]) -> Tried:
    """implicit's BPR over a grid of factors, rates and epochs."""
    from implicit.bpr import BayesianPersonalizedRanking
    from scipy.sparse import csr_matrix

    held = csr_matrix((np.ones(len(train), np.float32), (train[:, 0], train[:, 1])), (users, items))
    for factors, rate, epochs in itertools.product((32, 64, 128), (0.01, 0.03), (50, 150)):
        settings = f"{factors} factors, rate {rate}, {epochs} epochs"
        if settings in done:
            continue
        model = BayesianPersonalizedRanking(
            factors=factors, learning_rate=rate, regularization=0.01, iterations=epochs, random_state=0, num_threads=1
        )
        model.fit(held, show_progress=False)

        def rank(seen: np.ndarray, model: BayesianPersonalizedRanking = model) -> Top:
            scores = np.asarray(model.user_factors) @ np.asarray(model.item_factors).T
            scores[seen[:, 0], seen[:, 1]] = -np.inf
            return (-scores).argsort(1, kind="stable")[:, :DEPTH]

        yield settings, rank


def sasrec(train: np.ndarray, users: int, items: int, done: set[str]) -> Tried:
    """RecTools' SASRec with its softmax loss: its defaults, and smaller and longer ones, after each of a few epochs."""
    import pandas as pd
    import torch
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    def dataset(rows: np.ndarray) -> Dataset:
        when = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(len(rows)), unit="s")
        frame = {Columns.User: rows[:, 0], Columns.Item: rows[:, 1], Columns.Weight: 1.0, Columns.Datetime: when}
        return Dataset.construct(pd.DataFrame(frame))

    for factors, heads, length, batch, ends in SASRECS:
        names = {n: f"{factors} factors, {heads} heads, {length} items, batch {batch}, {n} epochs" for n in ends}
        if set(names.values()) <= done:
            continue
        torch.manual_seed(0)
        model = SASRecModel(n_factors=factors, n_heads=heads, session_max_len=length, batch_size=batch, verbose=0)
        before = 0
        for epochs, settings in names.items():
            model.fit_partial(dataset(train), min_epochs=epochs - before, max_epochs=epochs - before)
            before = epochs

            def rank(seen: np.ndarray, model: SASRecModel = model) -> Top:
                found = model.recommend(np.unique(seen[:, 0]), dataset(seen), k=DEPTH, filter_viewed=True)
                top = np.full((users, DEPTH), -1)
                top[found[Columns.User].to_numpy(), found[Columns.Rank].to_numpy() - 1] = found[Columns.Item].to_numpy()
                return top

            yield settings, rank


def try_all(
    name: str, method: Method, held: dict[str, np.ndarray], tried: dict[str, Any], keep: Callable[[], None]
) -> None:
    """Add each setting of `method` to `tried`: its NDCG@10 on val, and what it recommends (U,10) after val."""
    train, val = held["train"], held["val"]
    before_test = np.concatenate([train, np.stack([np.arange(len(val)), val], 1)])
    started = time.perf_counter()
    for settings, rank in method(train, len(val), int(held["items"]), set(tried)):
        found = float(ndcg(rank(train), val).mean())
        seconds = time.perf_counter() - started
        tried[settings] = {"val": found, "top": rank(before_test).tolist(), "seconds": seconds}
        keep()
        sys.stderr.write(f"{name} {settings} val NDCG@10 {found:.4f}, {seconds:.0f} s\n")
        started = time.perf_counter()


def main() -> None:
    loaded = np.load(sys.argv[1])
    held = {part: loaded[part] for part in ("train", "val", "test", "items")}
    file = Path(sys.argv[2])
    part_file = file.with_suffix(".tried.json")
    out = json.loads(file.read_text()) if file.is_file() else {}  # a method that is there is not run again
    tried = json.loads(part_file.read_text()) if part_file.is_file() else {}
    for name, method in (("BPR (implicit)", bpr), ("SASRec (RecTools)", sasrec)):
        if name in out:
            continue
        own = tried.setdefault(name, {})
        try:
            try_all(name, method, held, own, lambda: write(part_file, tried))
        except ImportError as error:
            sys.stderr.write(f"{name}: {error}\n")
            continue
        best = max(own, key=lambda settings: own[settings]["val"])
        scores = ndcg(np.array(own[best]["top"]), held["test"]).tolist()
        seconds = sum(one["seconds"] for one in own.values())
        out[name] = {"settings": best, "tried": len(own), "val": own[best]["val"], "ndcg": scores, "seconds": seconds}
        write(file, out)


def write(file: Path, values: dict[str, Any]) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(values))
    part.replace(file)


if __name__ == "__main__":
    main()
