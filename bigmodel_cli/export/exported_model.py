"""An export behind the interface of its model, so that a task can call it. Shapes: B batch, K classes, T tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from bigmodel_cli.core.processes.call_limit import bounded
from bigmodel_cli.core.tasks import TaskWrapper
from bigmodel_cli.core.types import Batch, SampleKey, Task
from bigmodel_cli.export.folder import ExportFolder, Run
from bigmodel_cli.export.pixels import to_pixels

PerToken = Callable[[Tensor, Tensor], Tensor]


@dataclass
class DecodingState:
    """Sources (N,S) and their target tokens so far (N,T)."""

    source: Tensor
    target: Tensor

    def select(self, rows: Tensor) -> DecodingState:
        return DecodingState(self.source[rows], self.target[rows])


class ExportedModel(nn.Module):
    """Inputs (B, ...) -> logits (B, ..., K) float32 on the inputs' device, computed by `run` on the CPU."""

    def __init__(self, run: Run, inputs: int) -> None:
        super().__init__()
        self.run, self.inputs = run, inputs

    def forward(self, *given: Tensor | PerToken, document: Tensor | None = None) -> Tensor:
        """Logits; or if targets (B,T) and a loss follow the inputs, as for a language model, the per-token loss.

        With document ids `document` (B,T), each document of a packed row is run on its own.
        """
        inputs = [x for x in given[: self.inputs] if isinstance(x, Tensor)]
        logits = self._run(*inputs) if document is None else self._run_per_document(inputs[0], document)
        if len(given) == self.inputs:
            return logits
        targets, loss = given[self.inputs :]
        assert isinstance(targets, Tensor) and callable(loss)
        flat = targets.flatten()
        return (loss(logits.flatten(0, -2), flat.clamp(min=0)) * (flat >= 0)).view(targets.shape)

    def start_decoding(self, source: Tensor) -> DecodingState:
        """The state for :meth:`step` of an encoder-decoder, with no target tokens yet."""
        return DecodingState(source, source[:, :0])

    def step(self, token: Tensor, state: DecodingState) -> Tensor:
        """Append `token` (N,) and return the next token's logits (N,V); the graph recomputes the whole target."""
        state.target = torch.cat((state.target, token[:, None]), 1)
        return self._run(state.source, state.target)[:, -1]

    def _run(self, *inputs: Tensor) -> Tensor:
        arrays = [x.cpu().contiguous().numpy() for x in inputs]
        with bounded():
            output = self.run(*arrays)
        return torch.from_numpy(output).float().to(inputs[0].device)

    def _run_per_document(self, tokens: Tensor, document: Tensor) -> Tensor:
        """(B,T,K) logits: a row's documents form a batch, padded at the end, which a causal model does not see."""
        rows = []
        for row, ids in zip(tokens, document, strict=True):
            lengths = ids.unique_consecutive(return_counts=True)[1].tolist()
            parts = self._run(pad_sequence(row.split(lengths), batch_first=True))
            rows.append(torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)]))
        return torch.stack(rows)


class RawImageTask(TaskWrapper):
    """`task` for an export that prepares to_pixels itself: it gets them (B,H,W,C) uint8, as they were read.

    `size` (H,W) is the only image size the format accepts; None: any.
    """

    def __init__(self, task: Task, size: tuple[int, int] | None) -> None:
        super().__init__(task)
        self.size = size

    def for_data(self, data: Any) -> RawImageTask:
        return RawImageTask(self.task.for_data(data), self.size)

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        image = batch["image"]
        if self.size is not None and image.shape[2:] != self.size:
            image = F.interpolate(image, self.size, mode=self.task.spec.interpolation, antialias=True)
        return {**self.task.prepare(batch, key), "image": to_pixels({"image": image}, self.task.spec)}


def exported_model(folder: ExportFolder, task: Task, trust: bool = False) -> tuple[ExportedModel, Task]:
    """The export, opened, in the place of its model, and `task` as it prepares batches for that.

    Raises:
        InputError: as :meth:`ExportFolder.open`, to which `trust` is passed.
    """
    if folder.takes_pixels:
        task = RawImageTask(task, folder.size)
    return ExportedModel(folder.open(trust), len(task.inputs)), task
