"""Sets of photos that defaults may stumble over: ``--freeze-backbone`` beside scikit-learn on the same weights.

    python benchmarks/odd_sets.py DATA_DIR FLOWERS [--only few ...]      some 6 minutes on 2 quiet cores

FLOWERS is a folder of class folders; DATA_DIR holds weights/timm. Beside ours stands a logistic regression on timm's
own features of all training images (also those that ours keeps as val), its strength by cross-validation; of more than
MANY classes, where that takes an hour, a ridge classifier, its strength by leaving one out.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = "tf_efficientnet_lite0"
MANY = 100
Made = dict[str, dict[str, list[Any]]]
"""Images by split and class: files, or PIL images."""


def counted(photos: dict[str, list[Path]], *counts: int) -> Made:
    """So many training photos of each class, and 60 to test."""
    classes = list(photos)[: len(counts)]
    train = {c: photos[c][:n] for c, n in zip(classes, counts, strict=True)}
    return {"train": train, "test": {c: photos[c][-60:] for c in classes}}


def strange_files(photos: dict[str, list[Path]]) -> Made:
    """Grey, CMYK, transparent and palette images among the photos, of one class much larger."""
    from PIL import Image

    modes = ("RGB", "L", "CMYK", "RGBA", "P")
    made = counted(photos, 40, 40)
    for split in made.values():
        for k, (name, files) in enumerate(list(split.items())):
            images = [Image.open(file).convert("RGB").resize((400 if k else 128,) * 2) for file in files]
            split[name] = [image.convert(modes[i % len(modes)]) for i, image in enumerate(images)]
    return made


def arrows(photos: dict[str, list[Path]]) -> Made:
    """A white arrow on each photo; its direction is the class."""
    from PIL import Image, ImageDraw

    draw, files = random.Random(0), [file for kind in photos.values() for file in kind[:60]]
    made: Made = {split: {"left": [], "right": []} for split in ("train", "test")}
    for i, file in enumerate(files):
        image, (x, y) = Image.open(file).convert("RGB").resize((128, 128)), (draw.randint(10, 50), draw.randint(20, 80))
        points = [(x, y), (x + 60, y + 12), (x, y + 24)] if i % 2 else [(x + 60, y), (x, y + 12), (x + 60, y + 24)]
        ImageDraw.Draw(image).polygon(points, fill="white", outline="black")
        made["test" if i % 3 == 2 else "train"]["right" if i % 2 else "left"].append(image)
    return made


def many_classes(photos: dict[str, list[Path]]) -> Made:
    """1,000 classes, each the crops of one photo: three to learn from, one to test."""
    from PIL import Image

    draw, files = random.Random(0), [file for kind in photos.values() for file in kind]
    draw.shuffle(files)
    made: Made = {"train": {}, "test": {}}
    for k, file in enumerate(files[:1000]):
        image = Image.open(file).convert("RGB").resize((128, 128))
        corners = [(draw.randint(0, 40), draw.randint(0, 40)) for _ in range(4)]
        crops = [image.crop((x, y, x + 88, y + 88)) for x, y in corners]
        made["train"][f"c{k:04}"], made["test"][f"c{k:04}"] = crops[:3], crops[3:]
    return made


SETS: dict[str, Callable[[dict[str, list[Path]]], Made]] = {
    "200, 20 and 5 photos": lambda photos: counted(photos, 200, 20, 5),
    "3 photos of each of 5": lambda photos: counted(photos, 3, 3, 3, 3, 3),
    "20 photos of each of 5": lambda photos: counted(photos, 20, 20, 20, 20, 20),
    "grey, CMYK, transparent, sizes by class": strange_files,
    "arrows, left or right": arrows,
    "1,000 classes of 3": many_classes,
}


def write(made: Made, folder: Path) -> None:
    for split, classes in made.items():
        for name, images in classes.items():
            place = folder / split / name
            place.mkdir(parents=True)
            for i, image in enumerate(images):
                if isinstance(image, Path):
                    shutil.copy(image, place / image.name)
                else:
                    image.save(place / f"{i}.{'tif' if image.mode == 'CMYK' else 'png'}")


def ours(data: Path, arguments: argparse.Namespace, run: Path) -> tuple[float, float]:
    """Accuracy on test, and the seconds of the command that trains."""
    command = [sys.executable, "-m", "bigmodel_cli"]
    train = ["finetune", f"timm:{MODEL}", "--pretrained", "--data", data, "--data-dir", arguments.data_dir]
    clock = time.perf_counter()
    words = [str(word) for word in (*command, *train, "--freeze-backbone", "--out", run)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - clock
    evaluated = subprocess.run(
        [*command, "eval", str(run), "--split", "test", "--json"], check=True, capture_output=True
    )
    return float(json.loads(evaluated.stdout)["headline"]["accuracy"]["value"]), seconds


def features(data: Path, data_dir: Path) -> dict[str, tuple[Any, list[int]]]:
    """timm's features (N,F) and the labels of each split."""
    import timm
    import torch
    from torchvision.datasets import ImageFolder

    config = timm.models.get_pretrained_cfg(MODEL)
    file = {"file": str(data_dir / f"weights/{config.hf_hub_id}.safetensors")}
    model = timm.create_model(MODEL, pretrained=True, num_classes=0, pretrained_cfg_overlay=file).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    parts = {}
    for split in ("train", "test"):
        images = ImageFolder(data / split, prepare)
        with torch.inference_mode():
            found = [model(batch) for batch, _ in torch.utils.data.DataLoader(images, 32)]
        parts[split] = torch.cat(found).numpy(), images.targets
    return parts


def theirs(parts: dict[str, tuple[Any, list[int]]]) -> str:
    """Accuracy on test of scikit-learn's classifier on `parts`, and what it is."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = parts["train"][1]
    search: Any
    if len(set(labels)) > MANY:
        name, search = "ridge", make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-1, 6, 15)))
    else:
        fewest = min(labels.count(k) for k in set(labels))
        name, search = (
            "logistic regression",
            GridSearchCV(
                make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
                {"logisticregression__C": [1e-3, 1e-2, 1e-1, 1.0]},
                cv=StratifiedKFold(min(5, fewest), shuffle=True, random_state=0),
            ),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f"{search.fit(*parts['train']).score(*parts['test']):.1%}, {name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the names of sets")
    arguments = parser.parse_args()
    photos = {kind.name: sorted(kind.glob("*.jpg")) for kind in sorted(arguments.photos.iterdir()) if kind.is_dir()}
    for files in photos.values():
        random.Random(1).shuffle(files)
    sys.stdout.write("| set | ours | seconds | scikit-learn |\n|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as scratch:
        for i, (name, make) in enumerate(SETS.items()):
            if any(part in name for part in arguments.only):
                data = Path(scratch) / f"set{i}"
                write(make(photos), data)
                accuracy, seconds = ours(data, arguments, Path(scratch) / f"run{i}")
                beside = theirs(features(data, arguments.data_dir))
                sys.stdout.write(f"| {name} | {accuracy:.1%} | {seconds:.0f} | {beside} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
