"""Ratings of MovieLens 100K by myFM's Bayesian factorisation machine, in an environment of its own: myfm.

python benchmarks/peers/ratings.py FOLDER rmse.json

A check of ours by another library: it reads u1.base and u1.test in FOLDER itself and shares no code with bigmodel.
"implicit" adds, as ours does, which films of u1.base a user rated, and which users rated a film.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import myfm
import numpy as np
from scipy import sparse

USERS, ITEMS, RANK, SWEEPS, KEPT = 943, 1682, 10, 300, 280


def with_norm_one(rows: sparse.csr_matrix) -> sparse.csr_matrix:
    norm = np.sqrt(np.maximum(np.asarray(rows.power(2).sum(1)).ravel(), 1))
    return (sparse.diags(1 / norm) @ rows).tocsr()


def main() -> None:
    folder = Path(sys.argv[1])
    base, test = (np.loadtxt(folder / f"u1.{part}", dtype=np.int64) for part in ("base", "test"))
    rated = sparse.csr_matrix((np.ones(len(base)), (base[:, 0] - 1, base[:, 1] - 1)), (USERS, ITEMS))
    users, items = sparse.identity(USERS).tocsr(), sparse.identity(ITEMS).tocsr()
    wider = (
        sparse.hstack([users, with_norm_one(rated)]).tocsr(),
        sparse.hstack([items, with_norm_one(rated.T.tocsr())]).tocsr(),
    )
    found = {}
    for name, blocks, groups in (("plain", (users, items), [USERS, ITEMS]),
                                 ("implicit", wider, [USERS, ITEMS, ITEMS, USERS])):  # fmt: skip
        model = myfm.MyFMRegressor(rank=RANK, random_seed=0)
        related = [[myfm.RelationBlock(rows[:, k] - 1, blocks[k]) for k in (0, 1)] for rows in (base, test)]
        ratings = base[:, 2].astype(float)
        model.fit(None, ratings, X_rel=related[0], n_iter=SWEEPS, n_kept_samples=KEPT, group_shapes=groups)
        predicted = model.predict(None, related[1]).clip(1, 5)
        found[name] = float(np.sqrt(np.mean((predicted - test[:, 2]) ** 2)))
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
