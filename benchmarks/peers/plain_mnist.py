"""The script everyone writes, on MNIST: torchvision's transforms, a DataLoader, fp32, SGD with momentum.

python plain_mnist.py MODEL FOLDER --steps N         training images/s over N steps
python plain_mnist.py MODEL FOLDER --until ACCURACY  epochs until the test split is answered that well
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms
from torchvision.datasets.mnist import read_image_file, read_label_file

BATCH, WARM = 128, 5


class Mnist(Dataset):
    """As torchvision's: a PIL image an item, then the transforms."""

    def __init__(self, folder: Path, split: str) -> None:
        self.images = read_image_file(str(folder / f"{split}-images-idx3-ubyte"))
        self.labels = read_label_file(str(folder / f"{split}-labels-idx1-ubyte"))
        steps = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
        self.pick, self.transform = transforms.ToPILImage(), transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pick(self.images[index])), int(self.labels[index])


def build(name: str) -> nn.Module:
    if name == "resnet18":
        model = models.resnet18(num_classes=10)
        model.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        return model
    return nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(320, 50), nn.ReLU(), nn.Linear(50, 10),
    )  # fmt: skip


def epoch(model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, steps: int | None) -> float:
    """Images a second after the first WARM steps."""
    model.train()
    done, clock = 0, time.perf_counter()
    for step, (x, y) in enumerate(loader):
        if step == WARM:
            done, clock = 0, time.perf_counter()
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += len(y)
        if steps is not None and step == steps + WARM - 1:
            break
    return done / (time.perf_counter() - clock)


def accuracy(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    with torch.no_grad():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
    return right / len(loader.dataset)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--until", type=float)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = build(given.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    train = DataLoader(Mnist(given.folder, "train"), batch_size=BATCH, shuffle=True, num_workers=given.workers)
    found: dict[str, float] = {}
    if given.steps:
        found["rate"] = epoch(model, train, optimizer, given.steps)
    else:
        test = DataLoader(Mnist(given.folder, "t10k"), batch_size=512, num_workers=given.workers)
        while found.get("accuracy", 0) < given.until:
            epoch(model, train, optimizer, None)
            found = {"accuracy": accuracy(model, test), "epochs": found.get("epochs", 0) + 1}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
