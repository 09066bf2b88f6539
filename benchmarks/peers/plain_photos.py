"""The script everyone writes, on a folder of photos: ImageFolder, a DataLoader, fp32, ResNet-18 at 224x224.

python plain_photos.py train FOLDER EPOCHS    train from zero, validate after each epoch
python plain_photos.py freeze FOLDER EPOCHS CKPT   train a new head on a frozen backbone, no augmentation
python plain_photos.py tune FOLDER EPOCHS WEIGHTS   train all of timm's EfficientNet-Lite0, from ImageNet weights
python plain_photos.py eval FOLDER CKPT       top-1 on the train photos
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

WORKERS, BATCH = 2, 32
NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
EVAL = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), NORMALIZE])
TRAIN = transforms.Compose(
    [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALIZE]
)


def load(path: str, classes: int) -> tuple[nn.Module, transforms.Compose]:
    """A checkpoint's weights (a new head where the classes are not its own), and its own normalisation."""
    state = torch.load(path, weights_only=True)
    model = models.resnet18(num_classes=classes)
    weights = state["model"]
    if weights["fc.weight"].shape[0] != classes:
        weights = {k: v for k, v in weights.items() if not k.startswith("fc.")}
    model.load_state_dict(weights, strict=False)
    given = state["meta"]["input"]
    normalize = transforms.Normalize(given["mean"], given["std"])
    return model, transforms.Compose([*EVAL.transforms[:-1], normalize])


def accuracy(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    with torch.no_grad():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
    return right / len(loader.dataset)


def fit(model: nn.Module, folder: Path, epochs: int, transform: transforms.Compose, check: transforms.Compose) -> float:
    train = DataLoader(ImageFolder(folder / "train", transform), BATCH, shuffle=True, num_workers=WORKERS)
    val = DataLoader(ImageFolder(folder / "val", check), BATCH, num_workers=WORKERS)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9)
    found = 0.0
    for _ in range(epochs):
        model.train(len(trained) > 2)  # a frozen backbone stays in eval mode, or its BatchNorm would drift
        for x, y in train:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = accuracy(model, val)
    return found


def main(job: str, folder: Path, *rest: str) -> None:
    torch.manual_seed(0)
    classes = len(list((folder / "train").iterdir()))
    if job == "train":
        found = fit(models.resnet18(num_classes=classes), folder, int(rest[0]), TRAIN, EVAL)
    elif job == "tune":
        import timm

        overlay = {"file": rest[1], "num_classes": 1000}
        model = timm.create_model(
            "tf_efficientnet_lite0", pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay
        )
        found = fit(model, folder, int(rest[0]), TRAIN, EVAL)
    elif job == "freeze":
        model, transform = load(rest[1], classes)
        model.requires_grad_(False)
        model.fc = nn.Linear(512, classes)
        found = fit(model, folder, int(rest[0]), transform, transform)
    else:
        model, transform = load(rest[0], classes)
        found = accuracy(model, DataLoader(ImageFolder(folder / "train", transform), 64, num_workers=WORKERS))
    sys.stdout.write(json.dumps({"accuracy": found}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
