"""The script everyone writes: torchvision's data set, a DataLoader, fp32, SGD. Prints training images/s.

python benchmarks/plain.py MODEL DATA_DIR STEPS
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms
from torchvision.datasets.mnist import read_image_file, read_label_file

BATCH = 128


class Mnist(Dataset):
    """As torchvision's: a PIL picture an item, then the transforms."""

    def __init__(self, folder: Path) -> None:
        self.images = read_image_file(str(folder / "train-images-idx3-ubyte"))
        self.labels = read_label_file(str(folder / "train-labels-idx1-ubyte"))
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


def main(name: str, folder: str, steps: int) -> None:
    torch.manual_seed(0)
    model = build(name).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loader = iter(DataLoader(Mnist(Path(folder)), batch_size=BATCH, shuffle=True))
    for step in range(steps + 3):
        if step == 3:  # the first steps warm up
            clock = time.perf_counter()
        x, y = next(loader)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sys.stdout.write(f"{steps * BATCH / (time.perf_counter() - clock)}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
