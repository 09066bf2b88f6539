# ruff: noqa: E501  # rows of tables
"""Measures what docs/trust.md promises, through the real commands, and writes benchmarks/RESULTS-trust.md.

python benchmarks/trust.py FOLDER [--step NAME ...] [--minutes M]

Each step takes at most some five minutes on two cores. Steps that are done are kept in FOLDER, and the page is written
after each, so that they can be run one after another, at any time; without --step, all that are missing are run, and
with --minutes no further one is begun after that time. A run that was cut off is resumed.
Data and weights are read from BIGMODEL_DATA, or ../shared/data, and from ../weights beside it. MAPIE is the oracle of
the conformal sets (pip install mapie).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys
import time
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
            again = "--resume" if any((self.folder / name).glob("*.pt")) else "--overwrite"
            self.run(verb, *arguments, "--out", name, again)
        return name


def overconfident(bench: Bench) -> str:
    """A text classifier trained far past its best epoch, as overconfident as they come."""
    options = ("--data", "rt-polarity", "--epochs", 25, "--set", "train.eval_epochs=25")
    return bench.train("overconfident", "text-cnn", *options)


def calibration(bench: Bench) -> Figures:
    (found,) = bench.run("eval", overconfident(bench), "--split", "test", "--calibrate")
    return {"accuracy": found["headline"]["accuracy"], "samples": found["samples"], **found["calibration"]}


def mnist(bench: Bench) -> str:
    return bench.train("cnn", "cnn", "--data", "mnist", "--epochs", 3)


def cifar(bench: Bench) -> str:
    return bench.train("cifar", "cnn", "--data", DATA / "cifar10-images.tar.xz", "--epochs", 5)


def conformal(bench: Bench, run: str) -> Figures:
    """Coverage and size of the sets on a test split, beside MAPIE's on the same logits."""
    (found,) = bench.run("eval", run, "--split", "test", "--conformal", 0.9)
    accuracy = found["headline"]["accuracy"]["value"]
    return {**found["conformal"], **oracle(bench, run), "samples": found["samples"], "accuracy": accuracy}


def oracle(bench: Bench, run: str) -> Figures:
    """MAPIE's sets, calibrated on val; and ours where calibration and measured samples are drawn from one set."""
    import torch

    from bigmodel_cli.commands.evaluation.measuring import open_split
    from bigmodel_cli.engine.build.load import load_trained
    from bigmodel_cli.insight.trust.conformal import conformal_sets

    os.environ["BIGMODEL_DATA"] = str(DATA)
    trained = load_trained(bench.folder / run)
    test = open_split(trained, trained.recipe, "test")
    outputs = [split.outputs(512) for split in (test.other("val"), test)]
    theirs = mapie(*[(o["logits"].double().softmax(1).numpy(), o["label"].numpy()) for o in outputs])
    logits, labels = (torch.cat([o[key] for o in outputs]) for key in ("logits", "label"))
    count, drawn = len(outputs[0]["label"]), []
    for seed in range(20):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        halves = [(logits[i], labels[i]) for i in (order[:count], order[count:])]
        drawn.append({name: sets.coverage for name, sets in conformal_sets(halves[0], halves[1], 0.9).items()})
    right = [float((o["logits"].argmax(1) == o["label"]).double().mean()) for o in outputs]
    mean = {name: sum(one[name] for one in drawn) / len(drawn) for name in drawn[0]}
    return {"mapie": theirs, "exchangeable": mean, "val_accuracy": right[0], "test_accuracy": right[1]}


def mapie(calibration: tuple[Any, Any], measured: tuple[Any, Any]) -> dict[str, list[float]]:
    """Coverage and mean size of MAPIE's sets for each of its scores, from probabilities (N,K) and labels (N,)."""
    import numpy as np
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    (x, y), (held, true) = calibration, measured

    class Given(ClassifierMixin, BaseEstimator):
        classes_ = np.arange(x.shape[1])

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
        theirs = SplitConformalClassifier(Given(), confidence_level=0.9, conformity_score=score, prefit=True)
        theirs.conformalize(x, y)
        sets = theirs.predict_set(held)[1][:, :, 0]
        found[score] = [float(sets[np.arange(len(true)), true].mean()), float(sets.sum(1).mean())]
    return found


def corruptions(bench: Bench) -> Figures:
    (found,) = bench.run("eval", mnist(bench), "--split", "test", "--corruptions", "--ood", "digits")
    return {"corruptions": found["corruptions"], "ood": found["out_of_distribution"]}


DIGITS, PHOTOS = 10, 2
"""Images that a step explains, of ten steps."""
PARTS = 10
PICTURES = {"digits": "digits of MNIST, cnn", "photos": "photos, EfficientNet-Lite0 with ImageNet weights"}


def digits(bench: Bench, part: int) -> Figures:
    """Insertion and deletion of each method on digits of MNIST's test split."""
    from PIL import Image

    folder = bench.folder / "digits"
    if not folder.exists():
        folder.mkdir()
        import torch

        from bigmodel_cli.data.image.mnist import mnist as load

        batch = load(DATA).load["test"]().gather(torch.arange(DIGITS * PARTS))
        for i, image in enumerate(batch["image"]):
            Image.fromarray(image[0].numpy()).save(folder / f"{i:03}.png")
    return explained(bench, mnist(bench), sorted(folder.glob("*.png"))[part * DIGITS : (part + 1) * DIGITS])


def network_of_photos(bench: Bench) -> str:
    """A network that saw ImageNet, with a new head for the photos."""
    photos = ("--data", DATA / "cats-dogs", "--method", "probe")
    return bench.train("photos", "timm:tf_efficientnet_lite0", "--from", WEIGHTS, *photos)


def photos(bench: Bench, part: int) -> Figures:
    every = sorted((DATA / "cats-dogs" / "test").rglob("*.jpg"))
    chosen = every[:: max(1, len(every) // (PHOTOS * PARTS))]
    return explained(bench, network_of_photos(bench), chosen[part * PHOTOS : (part + 1) * PHOTOS])


def explained(bench: Bench, run: str, files: list[Path]) -> Figures:
    lines = bench.run("explain", run, *files, "--steps", 16, "--out", f"why-{run}.html")
    return {"rows": [line["methods"] for line in lines]}


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


SEEDS, PAIRS = 7, 20


def seed(bench: Bench, number: int) -> str:
    return bench.train(f"seed{number}", "mlp", "--data", "mnist", "--epochs", 2, "--seed", number)


def same(bench: Bench, part: int) -> Figures:
    """Five of twenty pairs of seeds of one recipe."""
    pairs = list(itertools.combinations(range(SEEDS), 2))[:PAIRS][part * 5 : (part + 1) * 5]
    found = [bench.run("compare", seed(bench, a), seed(bench, b), "--page", "c.html")[0]["pairs"][0] for a, b in pairs]
    return {"told_apart": sum(p["better"] is not None for p in found), "differences": [p["difference"] for p in found]}


def unlike(bench: Bench) -> Figures:
    """Two models that differ."""
    weak = bench.train("perceptron", "perceptron", "--data", "mnist", "--epochs", 3)
    (found,) = bench.run("compare", weak, mnist(bench), "--split", "test", "--page", "compare.html")
    return {"verdict": found["pairs"][0]["verdict"]}


def trained(make: Callable[[Bench], str]) -> Callable[[Bench], Figures]:
    return lambda bench: {"run": make(bench)}


STEPS: dict[str, Callable[[Bench], Figures]] = {
    "train-overconfident": trained(overconfident),
    "calibration": calibration,
    "train-mnist": trained(mnist),
    "conformal-mnist": lambda bench: conformal(bench, mnist(bench)),
    "train-cifar": trained(cifar),
    "conformal-cifar": lambda bench: conformal(bench, cifar(bench)),
    "corruptions": corruptions,
    **{f"train-seed{i}": trained(functools.partial(seed, number=i)) for i in range(SEEDS)},
    **{f"same-{i}": functools.partial(same, part=i) for i in range(PAIRS // 5)},
    "unlike": unlike,
    **{f"digits-{i}": functools.partial(digits, part=i) for i in range(PARTS)},
    "train-photos": trained(network_of_photos),
    **{f"photos-{i}": functools.partial(photos, part=i) for i in range(PARTS)},
}


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
    for name, title in (("conformal-mnist", "MNIST"), ("conformal-cifar", "CIFAR-10")):
        if c := found.get(name):
            lines += conformal_lines(title, c)
    if c := found.get("corruptions"):
        d, o = c["corruptions"], c["ood"]
        lines += ["## Corruptions and foreign data", "", f"cnn on MNIST, {d['samples']:,} test samples: clean {d['clean']:.2%}, "
                  f"mean under corruptions {d['mean']:.2%}.", "", "| corruption | 1 | 2 | 3 | 4 | 5 |", "|---|---|---|---|---|---|",
                  *(f"| {n.replace('_', ' ')} | " + " | ".join(f"{v:.2%}" for v in row) + " |" for n, row in d["accuracy"].items()),
                  "", f"MNIST's test split against {o['data']} ({o['samples']:,} samples of another resolution, the same classes):", "",
                  "| score | AUROC | FPR at 95% TPR |", "|---|---|---|",
                  *(f"| {n.replace('_', ' ')} | {s['auroc']:.4f} | {s['fpr95']:.2%} |" for n, s in o["scores"].items()), ""]  # fmt: skip
    lines += explain_lines(found)
    parts = [found[name] for name in STEPS if name.startswith("same-") and name in found]
    if parts:
        differences = [d for part in parts for d in part["differences"]]
        apart = sum(part["told_apart"] for part in parts)
        most = 100 * max(map(abs, differences))
        lines += ["## Comparisons", "", f"mlp on MNIST, 2 epochs, {SEEDS} seeds: \"no difference is shown\" in "
                  f"{len(differences) - apart} of {len(differences)} pairs on val; the largest difference was {most:.2f} points.", ""]  # fmt: skip
    if c := found.get("unlike"):
        lines += [*([] if parts else ["## Comparisons", ""]), c["verdict"] + ".", ""]
    return "\n".join(lines)


def conformal_lines(title: str, c: Figures) -> list[str]:
    lines = [f"## Conformal sets, {title}", "", f"cnn, 90%, calibrated on {c['calibrated_on']} ({c['val_accuracy']:.2%} right), measured on "
             f"{c['samples']:,} test samples ({c['test_accuracy']:.2%} right). MAPIE has the same logits and calibration samples. Sizes can be "
             "compared where the coverage is equal: at exactly 90% the threshold is set on the measured samples. Where val and test differ in "
             "difficulty, coverage does too; drawn at random from val and test together (mean of 20 draws) it does not.", "",
             "| score | covered | mean size | MAPIE covered | MAPIE mean size | size at exactly 90% | covered, random draws |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, s in c["scores"].items():
        theirs = c["mapie"].get(name)
        other = f"{theirs[0]:.2%} | {theirs[1]:.3f}" if theirs else "- | -"
        lines.append(f"| {name.upper()} | {s['coverage']:.2%} | {s['mean_size']:.3f} | {other} | {s['size_at_level']:.3f} | "
                     f"{c['exchangeable'][name]:.2%} |")  # fmt: skip
    return [*lines, ""]


def explain_lines(found: dict[str, Figures]) -> list[str]:
    lines: list[str] = []
    for kind, title in PICTURES.items():
        rows = [row for i in range(PARTS) for row in found.get(f"{kind}-{i}", {"rows": []})["rows"]]
        if not rows:
            continue
        lines += [f"{len(rows)} {title}:", "", "| method | insertion | random | images better | deletion | random | images better | randomised |",
                  "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for name in rows[0]:
            m = summary([row[name] for row in rows])
            r = "-" if m["randomised"] is None else f"{m['randomised']:.2f}"
            lines.append(f"| {name} | {m['insertion']:.3f} | {m['random_insertion']:.3f} | {m['inserts']} of {m['images']} | "
                         f"{m['deletion']:.3f} | {m['random_deletion']:.3f} | {m['deletes']} of {m['images']} | {r} |")  # fmt: skip
        lines.append("")
    head = ["## Explanations", "", "Means over images. Random: blocks in random order, six draws an image. Randomised: mean absolute rank "
            "correlation with the map of the same network with random weights.", ""]  # fmt: skip
    return [*head, *lines] if lines else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--step", nargs="+", choices=list(STEPS))
    parser.add_argument("--minutes", type=float, default=float("inf"))
    given = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    bench = Bench(given.folder.resolve())
    files = {name: bench.folder / f"step-{name}.json" for name in STEPS}
    end = time.monotonic() + 60 * given.minutes
    for name in given.step or [name for name, file in files.items() if not file.exists()]:
        if time.monotonic() > end:
            break
        started = time.monotonic()
        files[name].write_text(json.dumps(STEPS[name](bench)))
        found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
        (HERE / "RESULTS-trust.md").write_text(page(found), encoding="utf-8")
        sys.stderr.write(f"{name}: {time.monotonic() - started:.0f} s\n")


if __name__ == "__main__":
    main()
