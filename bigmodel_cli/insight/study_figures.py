"""Figures of a study. Each takes the results of all runs and the image file to write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bigmodel_cli.core.registry import figures
from bigmodel_cli.insight.plotting import drawing

Results = list[dict[str, Any]]

PAPER = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43}
"""He et al. 2015, Table 6: test error of ResNets on CIFAR-10 in percent (164 epochs, with augmentation)."""


@figures.register()
def depth(results: Results, path: Path) -> None:
    """Plain against residual networks by depth, as in Figure 6 of He et al. 2015, with the values of Table 6."""
    found: dict[str, dict[int, dict[str, Any]]] = {"plain": {}, "resnet": {}}
    for result in results:
        kind, layers = re.fullmatch(r"([a-z]+)-?(\d+).*", result["model"]).groups()  # type: ignore[union-attr]
        found[kind][int(layers)] = result
    with drawing(path, 1, 3, (4.6, 3.8)) as (left, middle, right):
        for axes, kind in ((left, "plain"), (middle, "resnet")):
            for layers, result in sorted(found[kind].items()):
                steps = [e["epoch"] for e in result["epochs"]]
                axes.plot(steps, [e["train_loss"] for e in result["epochs"]], "o-", ms=3, label=f"{kind}{layers}")
            axes.set(xlabel="epoch", ylabel="training loss", title={"plain": "plain", "resnet": "residual"}[kind])
            axes.legend(frameon=False)
        middle.sharey(left)
        split = "test" if all("test_accuracy" in r for r in results) else "val"
        for kind, style in (("plain", "s--"), ("resnet", "o-")):
            runs = sorted(found[kind].items())
            errors = [100 * (1 - r[f"{split}_accuracy"]) for _, r in runs]
            right.plot([layers for layers, _ in runs], errors, style, label=f"{kind}, ours")
        right.plot(list(PAPER), list(PAPER.values()), "k^:", ms=4, label="resnet, the paper: 64,000 steps")
        right.set(xlabel="layers", ylabel=f"{split} error, %", title="error by depth", ylim=(0, None))
        right.legend(frameon=False)


@figures.register()
def accuracies(results: Results, path: Path) -> None:
    """Accuracy of each run on val and, if measured, on test."""
    names = [r["run"] for r in results]
    splits = [s for s in ("val", "test") if all(f"{s}_accuracy" in r for r in results)]
    with drawing(path, size=(7.0, 0.4 * len(names) + 1.2)) as axes:
        for i, split in enumerate(splits):
            places = [k + (i - (len(splits) - 1) / 2) * 0.38 for k in range(len(names))]
            values = [100 * r[f"{split}_accuracy"] for r in results]
            bars = axes.barh(places, values, 0.36, label=split)
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(xlabel="accuracy, %")
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


@figures.register()
def examples(results: Results, path: Path) -> None:
    """Accuracy by the number of samples of each class, a curve for each method; runs are named METHOD-NUMBER."""
    curves: dict[str, list[tuple[int, float]]] = {}
    split = "test" if all("test_accuracy" in r for r in results) else "val"
    for result in results:
        method, _, count = result["run"].rpartition("-")
        curves.setdefault(method, []).append((int(count), 100 * result[f"{split}_accuracy"]))
    with drawing(path, size=(5.6, 3.8)) as axes:
        for method, points in curves.items():
            counts, values = zip(*sorted(points), strict=True)
            axes.plot(counts, values, "o-", ms=4, label=method)
        axes.set(xscale="log", xlabel="samples of each class", ylabel=f"{split} accuracy, %")
        axes.set_xticks(ticks := sorted({n for points in curves.values() for n, _ in points}), map(str, ticks))
        axes.minorticks_off()
        axes.legend(frameon=False)
