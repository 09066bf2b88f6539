"""Recommenders on MovieLens 100K: ours, plain baselines and other libraries, on one split, ranked by one program.

python benchmarks/recommendation.py --data-dir DIR --out DIR [--peers PYTHON] > benchmarks/RESULTS-recommendation.md

PYTHON is of an environment with implicit, rectools[torch] and myfm; without it, their rows are left out, which is said.
The scores of our models come from their checkpoints; ranks, NDCG and intervals are computed here, with numpy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RANKERS = ("two-tower", "sasrec")
RATERS = ("mf", "features")
RESAMPLES = 2000
PEERS = ("BPR (implicit)", "SASRec (RecTools)")


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def bigmodel(*arguments: str) -> list[dict[str, Any]]:
    """The JSON lines that a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "bigmodel_cli", *arguments, "--json"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def train(name: str, arguments: argparse.Namespace) -> tuple[Path, float]:
    """Train a recipe, unless it is there; its folder, and the seconds that it took."""
    folder = arguments.out / name
    if not (folder / "best.pt").is_file():
        recipe = f"recipes/recommendation/movielens-{name}.yaml"
        bigmodel("train", "--recipe", recipe, "--data-dir", str(arguments.data_dir), "--out", str(folder))
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return folder, next(e["seconds"] for e in reversed(events) if e["event"] == "end")


def split(arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """The leave-last-out split that the recipes use: equal times in hashed order."""
    import torch

    from bigmodel_cli.core.registry import data

    bundle = data.get("movielens-100k")(arguments.data_dir, "recommendation", split="last", ties="hashed")
    source = bundle.load["test"]()
    known = source.known(torch.arange(bundle.spec.users))
    rows = [[i - 1 for i in row if i] for row in known.tolist()]
    pairs = [(u, i) for u, row in enumerate(rows) for i in row[:-2]]
    return {"train": np.array(pairs), "val": np.array([row[-2] for row in rows]),
            "test": np.array([row[-1] for row in rows]), "items": np.array(bundle.spec.items)}  # fmt: skip


def our_scores(folder: Path, held: dict[str, np.ndarray]) -> np.ndarray:
    """(U,I) the scores of a checkpoint after all but the last item of each user."""
    import torch

    from bigmodel_cli.engine.build.load import load_trained

    trained = load_trained(folder)
    users = len(held["val"])
    history = torch.zeros(users, int(np.bincount(held["train"][:, 0]).max()) + 1, dtype=torch.int64)
    for u in range(users):
        row = [*held["train"][held["train"][:, 0] == u][:, 1], held["val"][u]]
        history[u, : len(row)] = torch.tensor(row) + 1
    with torch.inference_mode():
        parts = [
            trained.task.scores(trained.model.eval(), part, history[part]) for part in torch.arange(users).split(64)
        ]
    return torch.cat(parts).double().numpy()


def baselines(held: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(U,I) scores of popularity, item-kNN (cosine, 100 neighbours, shrinkage 10) and EASE (L2 200)."""
    users, items = len(held["val"]), int(held["items"])
    fitted = np.zeros((users, items))
    fitted[held["train"][:, 0], held["train"][:, 1]] = 1
    shown = fitted.copy()
    shown[np.arange(users), held["val"]] = 1
    gram = fitted.T @ fitted
    norm = np.sqrt(gram.diagonal())
    similar = gram / (norm[:, None] * norm + 10)
    np.fill_diagonal(similar, 0)
    least = -np.sort(-similar, axis=0)[99]
    inverse = np.linalg.inv(gram + 200 * np.eye(items))
    weights = -inverse / inverse.diagonal()
    np.fill_diagonal(weights, 0)
    nearest = np.where(similar >= least, similar, 0)
    popular = np.tile(gram.diagonal(), (users, 1))
    return {"popularity": popular, "item-kNN": shown @ nearest, "EASE": shown @ weights}


def top_ten(scores: np.ndarray, held: dict[str, np.ndarray]) -> np.ndarray:
    """(U,10) the best items that the user has not seen; ties by number."""
    scores = scores.copy()
    scores[held["train"][:, 0], held["train"][:, 1]] = -np.inf
    scores[np.arange(len(scores)), held["val"]] = -np.inf
    return (-scores).argsort(1, kind="stable")[:, :10]


def ndcg(top: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    hit = top == wanted[:, None]
    return np.where(hit.any(1), 1 / np.log2(hit.argmax(1) + 2), 0.0)


def interval(values: np.ndarray) -> str:
    """The mean with its 95% bootstrap interval over users."""
    draw = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draw].mean(1), [0.025, 0.975])
    return f"{values.mean():+.4f} ({low:+.4f} .. {high:+.4f})"


def rankings(arguments: argparse.Namespace) -> None:
    held = split(arguments)
    found, seconds = dict[str, np.ndarray](), dict[str, str]()
    for name in RANKERS:
        folder, took = train(name, arguments)
        found[f"bigmodel {name}"] = ndcg(top_ten(our_scores(folder, held), held), held["test"])
        seconds[f"bigmodel {name}"] = f"{took:.0f} s"
    for name, scores in baselines(held).items():
        found[name] = ndcg(top_ten(scores, held), held["test"])
    if arguments.peers:
        np.savez(arguments.out / "split.npz", **held)
        ranks = arguments.out / "ranks.json"
        if not ranks.is_file() or not set(PEERS) <= set(json.loads(ranks.read_text())):
            program = str(ROOT / "benchmarks/peers/recommenders.py")
            subprocess.run([arguments.peers, program, str(arguments.out / "split.npz"), str(ranks)], check=True)
        for name, peer in json.loads(ranks.read_text()).items():
            found[name], seconds[name] = np.array(peer["ndcg"]), f"{peer['settings']}, chosen on val"
    say("## Leave-last-out\n")
    users = len(held["val"])
    say(
        f"{users} users, {int(held['items']):,} items, all ranked but those seen; equal times in hashed order; NDCG@10."
    )
    say("All are fitted to the same train split and given the item before the last with the history.\n")
    names = [f"bigmodel {name}" for name in RANKERS]
    say("| model | NDCG@10 | HR@10 | " + " | ".join(f"{n} minus its" for n in names) + " | how |")
    say("|---|---|---|" + "---|" * (len(names) + 1))
    for name in sorted(found, key=lambda n: -found[n].mean()):
        apart = [interval(found[n] - found[name]) if n != name else "" for n in names]
        say(f"| {name} | {found[name].mean():.4f} | {(found[name] > 0).mean():.1%} | {' | '.join(apart)} | "
              f"{seconds.get(name, '')} |")  # fmt: skip
    for name in PEERS:
        if name not in found:
            say(f"\n{name} was not run to its end: it has no row.")
    best = max((n for n in found if n not in names), key=lambda n: found[n].mean())
    say()
    for name in names:
        draw = np.random.default_rng(0).integers(users, size=(RESAMPLES, users))
        low = np.quantile((found[name] - found[best])[draw].mean(1), 0.025)
        say(f"- {name} is {'above' if low > 0 else 'not shown to be above'} {best}, the best of the others.")


def ratings(arguments: argparse.Namespace) -> None:
    """RMSE on u1.test of what ``bigmodel predict`` says, and what choosing on the test would have claimed."""
    import torch

    from bigmodel_cli.engine.build.load import load_trained

    folder = arguments.data_dir / "movielens-100k"
    base, test = (np.loadtxt(folder / f"u1.{part}", dtype=np.int64) for part in ("base", "test"))
    shared = {(u, i) for u, i, *_ in base.tolist()} & {(u, i) for u, i, *_ in test.tolist()}
    pairs = arguments.out / "u1-test-pairs.csv"
    pairs.write_text("user,item\n" + "".join(f"{u},{i}\n" for u, i, *_ in test.tolist()))
    say("## Ratings, published split u1\n")
    say(f"u1.base has {len(base):,} ratings and u1.test {len(test):,}; {len(shared)} pairs are in both.\n")
    say("| recipe | RMSE | seconds | average of the first k samples, k chosen on u1.test |")
    say("|---|---|---|---|")
    for name in RATERS:
        run, took = train(name, arguments)
        rows = bigmodel("predict", str(run), str(pairs))
        predicted = np.array([row["rating"] for row in rows])
        rmse = np.sqrt(np.mean((predicted - test[:, 2]) ** 2))
        trained = load_trained(run)
        spec, model = trained.task.spec, trained.model
        place = [[spec.user_index(str(u)), spec.item_index(str(i))] for u, i, *_ in test.tolist()]
        users, items = torch.tensor(place).t()
        with torch.inference_mode():
            drawn = model.samples_of(users, items).double().numpy()  # (N,S)
        prefix = drawn.cumsum(1) / np.arange(1, drawn.shape[1] + 1)
        errors = np.sqrt(np.mean((prefix - test[:, 2:3]) ** 2, axis=0))
        say(f"| movielens-{name} | {rmse:.4f} | {took:.0f} | {errors.min():.4f} (k = {errors.argmin() + 1}) |")

    if arguments.peers:
        found = arguments.out / "rmse.json"
        if not found.is_file():
            program = str(ROOT / "benchmarks/peers/ratings.py")
            subprocess.run([arguments.peers, program, str(folder), str(found)], check=True)
        for name, value in json.loads(found.read_text()).items():
            say(f"| myFM, {name} | {value:.4f} | | |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peers")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    say("# Recommendation: results\n\nMade by `benchmarks/recommendation.py`. One run a model, seed 0.\n")
    ratings(arguments)
    say()
    rankings(arguments)


if __name__ == "__main__":
    main()
