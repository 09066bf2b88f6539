"""An export in the place of its model: what a task calls. Shapes: B batch, K classes, T tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.export.folder import ExportFolder, Run

PerToken = Callable[[Tensor, Tensor], Tensor]


class Answering(nn.Module):
    """Calls `run`, which is on the CPU: inputs (B, ...) -> logits (B, ..., K) float32, on the device of the inputs."""

    def __init__(self, run: Run, inputs: int) -> None:
        super().__init__()
        self.run, self.inputs = run, inputs

    def forward(self, *given: Tensor | PerToken) -> Tensor:
        """With targets (B,T) and a loss behind the inputs, as a language model is called: the loss of each token."""
        inputs = [x for x in given[: self.inputs] if isinstance(x, Tensor)]
        answer = self.run(*(x.cpu().contiguous().numpy() for x in inputs))
        logits = torch.from_numpy(answer).float().to(inputs[0].device)
        if len(given) == self.inputs:
            return logits
        targets, loss = given[self.inputs :]
        assert isinstance(targets, Tensor) and callable(loss)
        flat = targets.flatten()
        return (loss(logits.flatten(0, -2), flat.clamp(min=0)) * (flat >= 0)).view(targets.shape)


def answering(folder: ExportFolder, inputs: int) -> Answering:
    """The export, opened, in the place of its model; `inputs` is how many tensors that takes.

    Raises:
        InputError: the preparation is in its graph, where a task would prepare once more.
    """
    if folder.takes_pixels:
        what = f"{folder.path}: an export --with-preprocessing, which prepares pictures itself"
        raise InputError(what, "expected one without", "bigmodel serve, or its example.py")
    return Answering(folder.open(), inputs)
