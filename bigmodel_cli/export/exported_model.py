"""An export in the place of its model: what a task calls. Shapes: B batch, K classes, T tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from bigmodel_cli.core.tasks import TaskWrapper
from bigmodel_cli.core.types import Batch, SampleKey, Task
from bigmodel_cli.export.folder import ExportFolder, Run
from bigmodel_cli.export.pixels import images

PerToken = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Written:
    """Targets (N,T) that are being written for sources (N,S)."""

    source: Tensor
    target: Tensor

    def chosen(self, rows: Tensor) -> Written:
        return Written(self.source[rows], self.target[rows])


class ExportedModel(nn.Module):
    """Calls `run`, which is on the CPU: inputs (B, ...) -> logits (B, ..., K) float32, on the device of the inputs."""

    def __init__(self, run: Run, inputs: int) -> None:
        super().__init__()
        self.run, self.inputs = run, inputs

    def forward(self, *given: Tensor | PerToken, document: Tensor | None = None) -> Tensor:
        """With targets (B,T) and a loss behind the inputs, as a language model is called: the loss of each token.

        Where `document` (B,T) numbers documents that are to be read apart, each goes in by itself.
        """
        inputs = [x for x in given[: self.inputs] if isinstance(x, Tensor)]
        logits = self._run(*inputs) if document is None else self._apart(inputs[0], document)
        if len(given) == self.inputs:
            return logits
        targets, loss = given[self.inputs :]
        assert isinstance(targets, Tensor) and callable(loss)
        flat = targets.flatten()
        return (loss(logits.flatten(0, -2), flat.clamp(min=0)) * (flat >= 0)).view(targets.shape)

    def begin(self, source: Tensor) -> Written:
        """Of a model of (source, target so far): what :meth:`step` goes on from."""
        return Written(source, source[:, :0])

    def step(self, token: Tensor, past: Written) -> Tensor:
        """Logits (N,V) of what follows `token` (N,); the graph reads the whole target again."""
        past.target = torch.cat((past.target, token[:, None]), 1)
        return self._run(past.source, past.target)[:, -1]

    def _run(self, *inputs: Tensor) -> Tensor:
        answer = self.run(*(x.cpu().contiguous().numpy() for x in inputs))
        return torch.from_numpy(answer).float().to(inputs[0].device)

    def _apart(self, tokens: Tensor, document: Tensor) -> Tensor:
        """(B,T,K) logits: a row's documents are a batch, filled at the end, which no causal model looks at."""
        found = []
        for row, numbers in zip(tokens, document, strict=True):
            lengths = numbers.unique_consecutive(return_counts=True)[1].tolist()
            parts = self._run(pad_sequence(row.split(lengths), batch_first=True))
            found.append(torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)]))
        return torch.stack(found)


class Unprepared(TaskWrapper):
    """`task` for an export that prepares images itself: it gets them (B,H,W,C) uint8, as they were read.

    `size` (H,W): the only one that its format takes; None: any.
    """

    def __init__(self, task: Task, size: tuple[int, int] | None) -> None:
        super().__init__(task)
        self.size = size

    def for_data(self, data: Any) -> Unprepared:
        return Unprepared(self.task.for_data(data), self.size)

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        image = batch["image"]
        if self.size is not None and image.shape[2:] != self.size:
            image = F.interpolate(image, self.size, mode="bilinear", antialias=True)
        return {**self.task.prepare(batch, key), "image": images({"image": image}, self.task.spec)}


def exported_model(folder: ExportFolder, task: Task) -> tuple[ExportedModel, Task]:
    """The export, opened, in the place of its model, and `task` as it prepares batches for that."""
    if folder.takes_pixels:
        task = Unprepared(task, folder.size)
    return ExportedModel(folder.open(), len(task.inputs)), task
