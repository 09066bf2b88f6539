"""Attributes of CIFAR-10's pictures and the hue of flowers, and scikit-learn's figures for the same pixels and split.

    python benchmarks/labels/pictures.py DATA OUT

unpacks cifar10-images.tar.xz and flowers.tar.xz of DATA into OUT, writes two tables beside them, and prints
scikit-learn's figures. The recipes in recipes/image read the tables. Of CIFAR-10 the first 1,000 pictures of a class
are train, the next 200 val, and the first 200 of its test split are test.
"""

from __future__ import annotations

import csv
import hashlib
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score
from sklearn.multiclass import OneVsRestClassifier

ATTRIBUTES = {
    "airplane": "vehicle|flies", "automobile": "vehicle|road", "bird": "animal|flies", "cat": "animal|mammal|pet",
    "deer": "animal|mammal|hoofed", "dog": "animal|mammal|pet", "frog": "animal", "horse": "animal|mammal|hoofed",
    "ship": "vehicle", "truck": "vehicle|road",
}  # fmt: skip
SIDE = 32
Rows = list[tuple[str, str, str]]
"""(file, label, split)."""


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def split_of(name: str) -> str:
    """70% train, 15% val, 15% test, by a hash of the name."""
    place = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100
    return "train" if place < 70 else "val" if place < 85 else "test"


def attributes(out: Path) -> Iterator[tuple[str, str, str]]:
    root = out / "cifar10"
    for name, labels in ATTRIBUTES.items():
        train, test = (sorted((root / split / name).iterdir()) for split in ("train", "test"))
        for split, files in (("train", train[:1000]), ("val", train[1000:1200]), ("test", test[:200])):
            for file in files:
                yield str(file.relative_to(out)), labels, split


def hue(file: Path) -> float:
    """The share of red among red and blue over the picture, as an angle: 0 is blue, 90 red, in degrees."""
    red, _, blue = np.asarray(Image.open(file).convert("RGB"), float).reshape(-1, 3).mean(0)
    return float(np.degrees(np.arctan2(red, blue)))


def hues(out: Path) -> Iterator[tuple[str, str, str]]:
    for file in sorted((out / "flowers").rglob("*.jpg")):
        yield str(file.relative_to(out)), f"{hue(file):.3f}", split_of(file.name)


def write(path: Path, label: str, rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", label, "split"])
        table.writerows(rows)


def pixels(out: Path, rows: Rows) -> dict[str, np.ndarray]:
    """(N, 3072) by split: the centred square at 32 x 32, on the 0..1 scale."""
    found: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    for name, _, split in rows:
        image = Image.open(out / name).convert("RGB")
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        image = image.crop((left, top, left + short, top + short)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        found[split].append(np.asarray(image, np.float32).ravel() / 255)
    return {split: np.stack(values) for split, values in found.items()}


def report_attributes(out: Path, rows: Rows) -> None:
    """One logistic regression an attribute on 200 principal components; thresholds of the best F1 on val."""
    names = sorted({name for labels in ATTRIBUTES.values() for name in labels.split("|")})
    y = {
        s: np.array([[n in labels.split("|") for n in names] for _, labels, split in rows if split == s], int)
        for s in ("train", "val", "test")
    }
    x = pixels(out, rows)
    parts = PCA(200, random_state=0).fit(x["train"])
    x = {s: parts.transform(values) for s, values in x.items()}
    best: tuple[float, float, np.ndarray, np.ndarray] | None = None
    for strength in (0.01, 0.1, 1):
        model = OneVsRestClassifier(LogisticRegression(C=strength, max_iter=1000)).fit(x["train"], y["train"])
        val, test = model.predict_proba(x["val"]), model.predict_proba(x["test"])
        score = float(average_precision_score(y["val"], val))
        if best is None or score > best[0]:
            best = score, strength, val, test
    assert best is not None
    _, strength, val, test = best
    limits = [
        max(np.quantile(val[:, k], np.linspace(0, 1, 201)), key=lambda t, k=k: f1_score(y["val"][:, k], val[:, k] >= t))
        for k in range(len(names))
    ]
    always = np.tile(y["train"].mean(0) >= 0.5, (len(y["test"]), 1))
    for what, scores, decided in (
        (f"logistic regression (C {strength:g})", test, test >= limits),
        ("majority", np.tile(y["train"].mean(0), (len(y["test"]), 1)), always),
    ):
        say(
            f"attributes, {what}: test mAP {average_precision_score(y['test'], scores):.4f}, micro F1 "
            f"{f1_score(y['test'], decided, average='micro'):.4f}, macro F1 "
            f"{f1_score(y['test'], decided, average='macro', zero_division=0):.4f}, "
            f"Hamming loss {np.mean(y['test'] != decided):.4f}"
        )


def report_hues(out: Path, rows: Rows) -> None:
    """Ridge regression on the pixels; its strength by val."""
    x = pixels(out, rows)
    y = {s: np.array([float(value) for _, value, split in rows if split == s]) for s in x}
    fitted = [Ridge(alpha=a).fit(x["train"], y["train"]) for a in (1, 10, 100, 1000, 10_000)]
    best = max(fitted, key=lambda m: r2_score(y["val"], m.predict(x["val"])))
    for what, said in (
        (f"ridge (alpha {best.alpha:g})", best.predict(x["test"])),
        ("the mean of train", np.full(len(y["test"]), y["train"].mean())),
    ):
        rank = spearmanr(y["test"], said).statistic if np.ptp(said) else float("nan")
        say(
            f"hue, {what}: test MAE {mean_absolute_error(y['test'], said):.4f}, "
            f"R2 {r2_score(y['test'], said):.4f}, Spearman {rank:.4f}"
        )


def main(data: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for archive, folder in (("cifar10-images.tar.xz", "cifar10"), ("flowers.tar.xz", "flowers")):
        if not (out / folder).is_dir():
            with tarfile.open(data / archive) as file:
                file.extractall(out / folder, filter="data")
    rows = list(attributes(out))
    write(out / "cifar10-attributes.csv", "attributes", rows)
    report_attributes(out, rows)
    rows = list(hues(out))
    write(out / "flowers-hue.csv", "hue", rows)
    report_hues(out, rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
