"""Rankings by implicit's BPR and RecTools' SASRec, in an environment of their own: implicit, rectools[torch].

python benchmarks/peers/recommenders.py split.npz ranks.json

`split.npz` holds, for every user, the items in the order of time without the last two, the last but one and the last:
train (N,2) user and item, val (U,) and test (U,). Settings are chosen on val; the test is read once a method.
A method whose row is in ranks.json already is left as it is, and one that is not installed is passed over.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

DEPTH = 10
Top = np.ndarray
"""(U,DEPTH) item indices, best first, without what was seen."""


def ndcg(top: Top, wanted: np.ndarray) -> np.ndarray:
    """(U,) NDCG@10 with one item wanted per user."""
    hit = top == wanted[:, None]
    return np.where(hit.any(1), 1 / np.log2(hit.argmax(1) + 2), 0.0)


def bpr(train: np.ndarray, users: int, items: int) -> Iterator[tuple[str, Callable[[np.ndarray], Top]]]:
    """implicit's BPR over a grid of factors, rates and epochs."""
    from implicit.bpr import BayesianPersonalizedRanking
    from scipy.sparse import csr_matrix

    held = csr_matrix((np.ones(len(train), np.float32), (train[:, 0], train[:, 1])), (users, items))
    for factors in (32, 64, 128):
        for rate in (0.01, 0.03):
            for epochs in (50, 150):
                model = BayesianPersonalizedRanking(
                    factors=factors, learning_rate=rate, regularization=0.01, iterations=epochs, random_state=0,
                    num_threads=1,
                )  # fmt: skip
                model.fit(held, show_progress=False)

                def rank(seen: np.ndarray, model: BayesianPersonalizedRanking = model) -> Top:
                    scores = np.asarray(model.user_factors) @ np.asarray(model.item_factors).T
                    scores[seen[:, 0], seen[:, 1]] = -np.inf
                    return (-scores).argsort(1, kind="stable")[:, :DEPTH]

                yield f"{factors} factors, rate {rate}, {epochs} epochs", rank


def sasrec(train: np.ndarray, users: int, items: int) -> Iterator[tuple[str, Callable[[np.ndarray], Top]]]:
    """RecTools' SASRec with its softmax loss, over a grid of epochs and dropout."""
    import pandas as pd
    import torch
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    def dataset(rows: np.ndarray) -> Dataset:
        when = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(len(rows)), unit="s")
        frame = {Columns.User: rows[:, 0], Columns.Item: rows[:, 1], Columns.Weight: 1.0, Columns.Datetime: when}
        return Dataset.construct(pd.DataFrame(frame))

    for dropout in (0.2,):
        for epochs in (50, 100):
            torch.manual_seed(0)
            model = SASRecModel(
                n_blocks=2, n_heads=2, n_factors=64, session_max_len=100, dropout_rate=dropout, loss="softmax",
                lr=1e-3, batch_size=64, epochs=epochs, deterministic=True, verbose=0,
            )  # fmt: skip
            model.fit(dataset(train))

            def rank(seen: np.ndarray, model: SASRecModel = model) -> Top:
                found = model.recommend(np.unique(seen[:, 0]), dataset(seen), k=DEPTH, filter_viewed=True)
                top = np.full((users, DEPTH), -1)
                top[found[Columns.User].to_numpy(), found[Columns.Rank].to_numpy() - 1] = found[Columns.Item].to_numpy()
                return top

            yield f"dropout {dropout}, {epochs} epochs", rank


def main() -> None:
    held = np.load(sys.argv[1])
    train, val, test = held["train"], held["val"], held["test"]
    users, items = len(val), int(held["items"])
    numbers = np.arange(users)
    before_test = np.concatenate([train, np.stack([numbers, val], 1)])
    file = Path(sys.argv[2])
    out = json.loads(file.read_text()) if file.is_file() else {}  # a method that is there is not run again
    for name, method in (("BPR (implicit)", bpr), ("SASRec (RecTools)", sasrec)):
        if name in out:
            continue
        started, tried = time.perf_counter(), []
        try:
            for settings, rank in method(train, users, items):
                tried.append((float(ndcg(rank(train), val).mean()), settings, rank))
                sys.stderr.write(f"{name} {settings} val NDCG@10 {tried[-1][0]:.4f}\n")
        except ImportError as error:
            sys.stderr.write(f"{name}: {error}\n")
            continue
        best = max(tried, key=lambda t: t[0])
        top = best[2](before_test)
        seconds = time.perf_counter() - started
        out[name] = {"settings": best[1], "val": best[0], "ndcg": ndcg(top, test).tolist(), "seconds": seconds}
        file.write_text(json.dumps(out))


if __name__ == "__main__":
    main()
