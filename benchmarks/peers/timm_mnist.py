"""The same MNIST work with timm's model, loader, optimizer and loop, as its train.py has them (pip install timm).

python timm_mnist.py resnet18 FOLDER --steps N      training images/s over N steps
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import timm
import torch
from plain_mnist import BATCH, WARM
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.transforms.functional import to_pil_image


class Images(torch.utils.data.Dataset):
    """PIL images and labels, as timm's own data sets give them; the loader sets `transform`."""

    transform = None

    def __init__(self, folder: Path) -> None:
        self.images = read_image_file(str(folder / "train-images-idx3-ubyte"))
        self.labels = read_label_file(str(folder / "train-labels-idx1-ubyte"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = to_pil_image(self.images[index])
        return (self.transform(image) if self.transform else image), int(self.labels[index])


def main(name: str, folder: Path, steps: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, in_chans=1, num_classes=10)
    loader = create_loader(
        Images(folder), input_size=(1, 28, 28), batch_size=BATCH, is_training=True, no_aug=True,
        use_prefetcher=False, mean=(0.1307,), std=(0.3081,), num_workers=2, device=torch.device("cpu"),
    )  # fmt: skip
    optimizer = create_optimizer_v2(model, opt="momentum", lr=0.01, momentum=0.9, weight_decay=0.0)
    loss_fn = torch.nn.CrossEntropyLoss()
    model.train()
    done, clock = 0, time.perf_counter()
    for step, (x, y) in enumerate(loader):
        if step == WARM:
            done, clock = 0, time.perf_counter()
        loss = loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += len(y)
        if step == steps + WARM - 1:
            break
    sys.stdout.write(json.dumps({"rate": done / (time.perf_counter() - clock)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[4]))
