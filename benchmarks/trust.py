# ruff: noqa: E501  # rows of tables
"""Measures what docs/trust.md promises, through the real commands, and writes benchmarks/RESULTS-trust.md.

python benchmarks/trust.py FOLDER [--only PART ...]

Data and weights are read from BIGMODEL_DATA, or ../shared/data, and from ../weights beside it. FOLDER keeps the runs
and the figures of each part, so that parts can be measured one after another; the page has all that are there.
MAPIE is the oracle of the conformal sets (pip install mapie).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("BIGMODEL_DATA") or HERE.parents[1] / "shared" / "data").resolve()
WEIGHTS = DATA.parent / "weights" / "tf_efficientnet_lite0.safetensors"
Figures = dict[str, Any]


class Bench:
    """Runs commands in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, *arguments: Any) -> list[Figures]:
        """The JSON lines that a command prints."""
        command = [sys.executable, "-m", "bigmodel_cli", *map(str, arguments), "--json"]
        environment = {**os.environ, "BIGMODEL_DATA": str(DATA), "PYTHONPATH": str(HERE.parent)}
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def train(self, name: str, *arguments: Any) -> str:
        """The run called `name`, trained if it is not there or was cut off."""
        status = self.folder / name / "status.json"
        if not status.exists() or json.loads(status.read_text())["state"] != "done":
            verb = "finetune" if "--from" in arguments else "train"
            self.run(verb, *arguments, "--out", name, "--overwrite")
        return name


def calibration(bench: Bench) -> Figures:
    """A text classifier trained far past its best epoch, as overconfident as they come."""
    options = ("--data", "rt-polarity", "--epochs", 25, "--set", "train.eval_epochs=25")
    run = bench.train("overconfident", "text-cnn", *options)
    (found,) = bench.run("eval", run, "--split", "test", "--calibrate")
    return {"accuracy": found["headline"]["accuracy"], "samples": found["samples"], **found["calibration"]}


def mnist(bench: Bench) -> str:
    return bench.train("cnn", "cnn", "--data", "mnist", "--epochs", 3)


def conformal(bench: Bench) -> Figures:
    """Coverage and size of the sets on MNIST's test split, beside MAPIE's on the same logits."""
    (found,) = bench.run("eval", mnist(bench), "--split", "test", "--conformal", 0.9)
    return {**found["conformal"], "mapie": mapie(bench), "samples": found["samples"]}


def mapie(bench: Bench) -> dict[str, list[float]]:
    """Coverage and mean size of MAPIE's sets, calibrated on val, for each of its scores."""
    import numpy as np
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    from bigmodel_cli.commands.measuring import open_split
    from bigmodel_cli.engine.build.load import load_trained

    trained = load_trained(bench.folder / "cnn")
    test = open_split(trained, trained.recipe, "test")
    val = test.other("val")
    (x, y), (held, true) = ((o["logits"].double().softmax(1).numpy(), o["label"].numpy())
                            for o in (s.outputs(512) for s in (val, test)))  # fmt: skip

    class Given(ClassifierMixin, BaseEstimator):
        classes_ = np.arange(10)

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def fit(self, x: Any, y: Any) -> Any:
            return self

        def predict_proba(self, x: Any) -> Any:
            return x

        def predict(self, x: Any) -> Any:
            return x.argmax(1)

    found = {}
    for score in ("lac", "aps", "raps"):
        oracle = SplitConformalClassifier(Given(), confidence_level=0.9, conformity_score=score, prefit=True)
        oracle.conformalize(x, y)
        sets = oracle.predict_set(held)[1][:, :, 0]
        found[score] = [float(sets[np.arange(len(true)), true].mean()), float(sets.sum(1).mean())]
    return found


def corruptions(bench: Bench) -> Figures:
    (found,) = bench.run("eval", mnist(bench), "--split", "test", "--corruptions", "--ood", "digits")
    return {"corruptions": found["corruptions"], "ood": found["out_of_distribution"]}


def explain(bench: Bench) -> Figures:
    """Insertion and deletion of each method on MNIST digits and on real photos, with a network that saw ImageNet."""
    from PIL import Image

    from bigmodel_cli.data.image.mnist import mnist as load

    digits = bench.folder / "digits"
    if not digits.exists():
        digits.mkdir()
        import torch

        batch = load(DATA).load["test"]().gather(torch.arange(100))
        for i, image in enumerate(batch["image"]):
            Image.fromarray(image[0].numpy()).save(digits / f"{i:03}.png")
    photos = sorted((DATA / "cats-dogs" / "test").rglob("*.jpg"))[::20]
    bench.train("photos", "timm:tf_efficientnet_lite0", "--from", WEIGHTS, "--data", DATA / "cats-dogs",
                "--method", "probe")  # fmt: skip
    every = {"100 digits of MNIST, cnn": (mnist(bench), [digits])}
    every[f"{len(photos)} photos, EfficientNet-Lite0 with ImageNet weights"] = ("photos", photos)
    found: Figures = {}
    for title, (run, files) in every.items():
        lines = bench.run("explain", run, *files, "--steps", 16, "--out", f"why-{run}.html")
        found[title] = {name: summary([line["methods"][name] for line in lines]) for name in lines[0]["methods"]}
    return found


def summary(rows: list[Figures]) -> Figures:
    """Means over images, and how many images beat random."""
    known = [abs(r["randomised"]) for r in rows if r["randomised"] is not None]
    means = {k: sum(r[k] for r in rows) / len(rows) for k in rows[0] if k.endswith(("insertion", "deletion"))}
    return {
        **means,
        "images": len(rows),
        "inserts": sum(r["insertion"] > r["random_insertion"] for r in rows),
        "deletes": sum(r["deletion"] < r["random_deletion"] for r in rows),
        "randomised": sum(known) / len(known) if known else None,
    }


def compare(bench: Bench) -> Figures:
    """Twenty pairs of seeds of one recipe, and two models that differ."""
    runs = [bench.train(f"seed{i}", "mlp", "--data", "mnist", "--epochs", 2, "--seed", i) for i in range(7)]
    pairs = [bench.run("compare", a, b, "--page", "c.html")[0]["pairs"][0]
             for a, b in list(itertools.combinations(runs, 2))[:20]]  # fmt: skip
    weak = bench.train("perceptron", "perceptron", "--data", "mnist", "--epochs", 3)
    (unlike,) = bench.run("compare", weak, mnist(bench), "--split", "test", "--page", "compare.html")
    return {"told_apart": sum(p["better"] is not None for p in pairs), "pairs": len(pairs),
            "differences": [p["difference"] for p in pairs], "unlike": unlike["pairs"][0]["verdict"]}  # fmt: skip


PARTS: dict[str, Callable[[Bench], Figures]] = {
    "calibration": calibration, "conformal": conformal, "corruptions": corruptions, "explain": explain,
    "compare": compare,
}  # fmt: skip


def page(found: dict[str, Figures]) -> str:
    import torch

    lines = ["# How far answers can be trusted", "", "Written by `python benchmarks/trust.py FOLDER` on a CPU, torch "
             f"{torch.__version__.partition('+')[0]}; one run each, seed 0.", ""]  # fmt: skip
    if c := found.get("calibration"):
        ece = {
            k: f"{c[k]['ece']['value']:.4f} ({c[k]['ece']['low']:.4f} .. {c[k]['ece']['high']:.4f})"
            for k in ("before", "after")
        }
        lines += ["## Calibration", "", f"text-cnn on rt-polarity after 25 epochs, {c['samples']:,} test samples, accuracy "
                  f"{c['accuracy']['value']:.2%}; temperature {c['temperature']:.3f} fitted on val.", "",
                  "| | ECE, 15 bins, with 95% interval | negative log-likelihood |", "|---|---|---|",
                  *(f"| {k} | {ece[k]} | {c[k]['negative_log_likelihood']:.4f} |" for k in ece), ""]  # fmt: skip
    if c := found.get("conformal"):
        lines += ["## Conformal sets", "", f"cnn on MNIST, 90%, calibrated on {c['calibrated_on']}, measured on "
                  f"{c['samples']:,} test samples. MAPIE has the same logits and calibration samples. Sizes can be "
                  "compared where the coverage is equal: the last column sets the threshold for exactly 90%.", "",
                  "| score | covered | mean size | MAPIE covered | MAPIE mean size | size at exactly 90% |", "|---|---|---|---|---|---|"]  # fmt: skip
        for name, s in c["scores"].items():
            theirs = c["mapie"].get(name)
            other = f"{theirs[0]:.2%} | {theirs[1]:.3f}" if theirs else "- | -"
            lines.append(
                f"| {name.upper()} | {s['coverage']:.2%} | {s['mean_size']:.3f} | {other} | {s['size_at_level']:.3f} |"
            )
        lines.append("")
    if c := found.get("corruptions"):
        d, o = c["corruptions"], c["ood"]
        lines += ["## Corruptions and foreign data", "", f"cnn on MNIST, {d['samples']:,} test samples: clean {d['clean']:.2%}, "
                  f"mean under corruptions {d['mean']:.2%}.", "", "| corruption | 1 | 2 | 3 | 4 | 5 |", "|---|---|---|---|---|---|",
                  *(f"| {n.replace('_', ' ')} | " + " | ".join(f"{v:.2%}" for v in row) + " |" for n, row in d["accuracy"].items()),
                  "", f"MNIST's test split against {o['data']} ({o['samples']:,} samples of another resolution, the same classes):", "",
                  "| score | AUROC | FPR at 95% TPR |", "|---|---|---|",
                  *(f"| {n.replace('_', ' ')} | {s['auroc']:.4f} | {s['fpr95']:.2%} |" for n, s in o["scores"].items()), ""]  # fmt: skip
    if c := found.get("explain"):
        lines += ["## Explanations", "", "Means over images. Random: blocks in random order, six draws an image. Randomised: mean "
                  "absolute rank correlation with the map of the same network with random weights.", ""]  # fmt: skip
        for title, methods in c.items():
            lines += [f"{title}:", "", "| method | insertion | random | images better | deletion | random | images better | randomised |",
                      "|---|---|---|---|---|---|---|---|"]  # fmt: skip
            for n, m in methods.items():
                r = "-" if m["randomised"] is None else f"{m['randomised']:.2f}"
                lines.append(f"| {n} | {m['insertion']:.3f} | {m['random_insertion']:.3f} | {m['inserts']} of {m['images']} | "
                             f"{m['deletion']:.3f} | {m['random_deletion']:.3f} | {m['deletes']} of {m['images']} | {r} |")  # fmt: skip
            lines.append("")
    if c := found.get("compare"):
        most = max(abs(d) for d in c["differences"])
        lines += ["## Comparisons", "", f"mlp on MNIST, 2 epochs, 7 seeds: \"no difference is shown\" in {c['pairs'] - c['told_apart']} "
                  f"of {c['pairs']} pairs on val; the largest difference was {100 * most:.2f} points.", "", c["unlike"] + ".", ""]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    given = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    bench = Bench(given.folder.resolve())
    for name in given.only:
        (bench.folder / f"{name}.json").write_text(json.dumps(PARTS[name](bench)))
    known = {name: bench.folder / f"{name}.json" for name in PARTS}
    found = {name: json.loads(file.read_text()) for name, file in known.items() if file.exists()}
    (HERE / "RESULTS-trust.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
