"""Pictures that live in memory as uint8. Shapes: N samples, B batch, C channels, H height, W width."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bigmodel_cli.core.types import Batch


@dataclass(frozen=True)
class ImageArrays:
    """One split: `pictures` (N,C,H,W) uint8 and `labels` (N,) int64."""

    pictures: Tensor
    labels: Tensor
    split: str

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: Tensor) -> Batch:
        return {"image": self.pictures[indices], "label": self.labels[indices], "index": indices}

    def name(self, index: int) -> str:
        return f"{self.split}[{index}]"
