"""The outputs of many batches, kept without spreading over the heap. Shape: B samples of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.types import Batch


class KeptOutputs:
    """The outputs of up to `most` samples on the CPU, written batch by batch into tensors that are made once.

    The small results of each batch, kept one by one, would lie between the large blocks that the next batches need:
    with a language model the heap grew by 34 MB a batch.
    """

    def __init__(self, most: int, order: Tensor | None = None) -> None:
        self.most, self.order, self.count = most, order, 0
        self.held: Batch = {}

    def add(self, out: Batch) -> None:
        """Keep the outputs (B,...) of the next batch: after those before, or at its places in the `order` (N,)."""
        size = len(next(iter(out.values())))
        next_rows = slice(self.count, self.count + size)
        at = next_rows if self.order is None else self.order[next_rows]
        for key, value in out.items():
            if key not in self.held:
                with torch.inference_mode(False):  # what is kept may be trained on
                    self.held[key] = torch.empty((self.most, *value.shape[1:]), dtype=value.dtype)
            self.held[key][at] = value.detach().cpu()
        self.count += size

    def outputs(self) -> Batch:
        whole = self.count == self.most  # a part is copied: another rank would be sent all of the memory behind it
        return {key: value if whole else value[: self.count].clone() for key, value in self.held.items()}
