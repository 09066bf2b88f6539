"""MovieLens 100K: a film's mean rating and its genres, from its title, and scikit-learn's figures for the same split.

    python benchmarks/labels/films.py DATA OUT

writes two tables with a column `split` to OUT, and prints scikit-learn's figures. `DATA` is the folder movielens-100k.
Films with fewer than 20 ratings have no stable mean and are left out. The recipes in recipes/text read the tables.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score
from sklearn.multiclass import OneVsRestClassifier

LEAST = 20  # ratings


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def split_of(name: str) -> str:
    """70% train, 15% val, 15% test, by a hash of the film's number."""
    place = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100
    return "train" if place < 70 else "val" if place < 85 else "test"


def main(data: Path, out: Path) -> None:
    genres = [line.split("|")[0] for line in (data / "u.genre").read_text("latin-1").splitlines() if "|" in line]
    ratings: dict[str, list[int]] = defaultdict(list)
    for line in (data / "u.data").read_text().splitlines():
        _, film, stars, _ = line.split()
        ratings[film].append(int(stars))
    films = []
    for line in (data / "u.item").read_text("latin-1").splitlines():
        cells = line.split("|")
        kinds = [name for name, flag in zip(genres, cells[5:], strict=True) if flag == "1"]
        if len(ratings[cells[0]]) >= LEAST and cells[1] != "unknown":
            films.append((cells[0], cells[1], kinds, float(np.mean(ratings[cells[0]]))))
    out.mkdir(parents=True, exist_ok=True)
    with (out / "film-ratings.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["title", "genres", "rating", "split"])
        table.writerows((title, " ".join(kinds), rating, split_of(film)) for film, title, kinds, rating in films)
    with (out / "film-genres.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["title", "genres", "split"])
        table.writerows((title, "|".join(kinds), split_of(film)) for film, title, kinds, _ in films)
    say(f"{len(films)} films, {len(genres)} genres")
    report_ratings(films)
    report_genres(films, genres)


def report_ratings(films: list[tuple[str, str, list[str], float]]) -> None:
    """Ridge regression on TF-IDF of titles and genres; its strength by val."""
    texts = {s: [f"{t} {' '.join(k)}" for f, t, k, _ in films if split_of(f) == s] for s in ("train", "val", "test")}
    values = {s: np.array([r for f, _, _, r in films if split_of(f) == s]) for s in texts}
    words = TfidfVectorizer(token_pattern=r"\S+").fit(texts["train"])
    x = {s: words.transform(texts[s]) for s in texts}
    fitted = [Ridge(alpha=a).fit(x["train"], values["train"]) for a in (0.1, 0.3, 1, 3, 10, 30)]
    best = max(fitted, key=lambda m: r2_score(values["val"], m.predict(x["val"])))
    said = best.predict(x["test"])
    say(
        f"ratings, ridge (alpha {best.alpha:g}): test MAE {mean_absolute_error(values['test'], said):.4f}, "
        f"R2 {r2_score(values['test'], said):.4f}, Spearman {spearmanr(values['test'], said).statistic:.4f}; "
        f"the mean of train: MAE {np.abs(values['test'] - values['train'].mean()).mean():.4f}"
    )


def report_genres(films: list[tuple[str, str, list[str], float]], genres: list[str]) -> None:
    """One logistic regression a genre on TF-IDF of titles; thresholds of the best F1 on val, as bigmodel chooses."""
    rows = {s: [(t, kinds) for f, t, kinds, _ in films if split_of(f) == s] for s in ("train", "val", "test")}
    names = sorted({name for s in rows for _, kinds in rows[s] for name in kinds})
    y = {s: np.array([[name in kinds for name in names] for _, kinds in rows[s]], int) for s in rows}
    words = TfidfVectorizer(token_pattern=r"\S+").fit([t for t, _ in rows["train"]])
    x = {s: words.transform([t for t, _ in rows[s]]) for s in rows}
    best: tuple[float, float, np.ndarray, np.ndarray] | None = None
    for strength in (0.1, 1, 10, 100):
        model = OneVsRestClassifier(LogisticRegression(C=strength, max_iter=2000)).fit(x["train"], y["train"])
        val, test = model.predict_proba(x["val"]), model.predict_proba(x["test"])
        score = mean_ap(y["val"], val)
        if best is None or score > best[0]:
            best = score, strength, val, test
    assert best is not None
    score, strength, val, test = best
    limits = [best_threshold(y["val"][:, k], val[:, k]) for k in range(len(names))]
    decided = test >= limits
    say(
        f"genres, logistic regression (C {strength:g}): test mAP {mean_ap(y['test'], test):.4f}, micro F1 "
        f"{f1_score(y['test'], decided, average='micro'):.4f}, macro F1 "
        f"{f1_score(y['test'], decided, average='macro', zero_division=0):.4f}, "
        f"Hamming loss {np.mean(y['test'] != decided):.4f}"
    )


def mean_ap(y: np.ndarray, scores: np.ndarray) -> float:
    """Over the labels that occur."""
    occurs = y.any(0)
    return float(average_precision_score(y[:, occurs], scores[:, occurs], average="macro"))


def best_threshold(y: np.ndarray, scores: np.ndarray) -> float:
    if not y.any():
        return 0.5
    return max(np.unique(scores), key=lambda t: f1_score(y, scores >= t, zero_division=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
