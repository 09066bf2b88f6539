"""The same MNIST work under Lightning (pip install lightning). Prints training images/s.

python lightning_mnist.py MODEL FOLDER --steps N
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from plain_mnist import BATCH, WARM, Mnist, build
from torch import nn
from torch.utils.data import DataLoader


class Lit(lightning.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Clock(lightning.Callback):
    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if index == WARM - 1:
            self.clock, self.done = time.perf_counter(), 0
        elif index >= WARM:
            self.done += len(batch[1])
            self.rate = self.done / (time.perf_counter() - self.clock)


def main(name: str, folder: Path, steps: int) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    clock = Clock()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_steps=steps + WARM, accelerator="cpu", callbacks=[clock], enable_model_summary=False, **quiet
    )
    trainer.fit(Lit(build(name)), DataLoader(Mnist(folder, "train"), batch_size=BATCH, shuffle=True))
    sys.stdout.write(json.dumps({"rate": clock.rate}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[4]))
