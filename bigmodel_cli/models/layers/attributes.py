"""Attributes of users and items as tensors. Shapes: N users or items, F values of all columns, W values of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bigmodel_cli.core.interactions import Column


def indicator_matrix(columns: Sequence[Column], count: int) -> Tensor:
    """(N,F) float32: the values that a user or item has in each column, scaled to norm 1 by column."""
    parts = [torch.zeros(count, 0)]
    for column in columns:
        hot = torch.zeros(count, len(column.values))
        for row, codes in enumerate(column.codes):
            hot[row, list(codes)] = len(codes) ** -0.5 if codes else 0.0
        parts.append(hot)
    return torch.cat(parts, 1)


class Attributes(nn.Module):
    """The embedded attributes of users or items, by number: (...) int64 -> (...,columns * width) float.

    A column with several values per item is averaged; a missing value is a zero vector.
    """

    def __init__(self, columns: Sequence[Column], width: int) -> None:
        super().__init__()
        self.width = width * len(columns)
        self.tables = nn.ModuleList(nn.Embedding(len(c.values) + 1, width, padding_idx=0) for c in columns)
        for i, column in enumerate(columns):
            most = max((len(codes) for codes in column.codes), default=1) or 1
            rows = [[k + 1 for k in codes] + [0] * (most - len(codes)) for codes in column.codes]
            self.register_buffer(f"codes{i}", torch.tensor(rows, dtype=torch.int64), persistent=False)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.05)  # type: ignore[arg-type]
            with torch.no_grad():
                table.weight[0] = 0  # type: ignore[index, operator]

    def forward(self, index: Tensor) -> Tensor:
        parts = [index.new_zeros((*index.shape, 0), dtype=torch.float32)]
        for i, table in enumerate(self.tables):
            codes = self.get_buffer(f"codes{i}")[index]  # (...,W)
            real = (codes > 0).sum(-1, keepdim=True).clamp(min=1)
            parts.append(table(codes).sum(-2) / real)
        return torch.cat(parts, -1)
