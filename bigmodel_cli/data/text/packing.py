"""Sequence packing: several short rows per long one, without truncation. Shapes: B batch, T tokens."""

from __future__ import annotations

import functools
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bigmodel_cli.core.chat.conversation import MaskedTokens
from bigmodel_cli.core.types import Batch


class Row(NamedTuple):
    """Tokens (T,) int32, their loss mask (T,) bool, and the bytes of text that each stands for (T,) int32."""

    ids: Tensor
    learn: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, found: MaskedTokens, most: int) -> Row:
        """The first `most` tokens of `found`."""
        ids, sizes = (torch.tensor(values[:most], dtype=torch.int32) for values in (found.ids, found.sizes))
        return cls(ids, torch.tensor(found.learn[:most]), sizes)


@dataclass(frozen=True)
class PackedRows:
    """One split: `rows` of tokens and their loss masks, in packs of at most `capacity` tokens.

    A batch has ``tokens``, ``learn``, ``bytes`` and ``document`` (B,T), padded to its longest pack. ``document``
    numbers the rows of a pack, with -1 for padding. The first token of a row has no loss, since nothing precedes it.
    """

    rows: Sequence[Row]
    names: Sequence[str]
    capacity: int
    pad: int

    def __len__(self) -> int:
        return len(self.packs)

    @functools.cached_property
    def packs(self) -> list[list[int]]:
        """The rows of each pack."""
        return best_fit([len(row.ids) for row in self.rows], self.capacity)

    def gather(self, indices: Tensor) -> Batch:
        chosen = [[self.rows[i] for i in self.packs[pack]] for pack in indices.tolist()]
        learn = [
            torch.cat([part for row in pack for part in (row.learn[:1] & False, row.learn[1:])]) for pack in chosen
        ]
        document = [torch.cat([torch.full((len(row.ids),), n) for n, row in enumerate(pack)]) for pack in chosen]
        return {
            "tokens": pad_sequence([torch.cat([row.ids for row in pack]) for pack in chosen], True, self.pad),
            "learn": pad_sequence(learn, True, False),
            "bytes": pad_sequence([torch.cat([row.sizes for row in pack]) for pack in chosen], True, 0),
            "document": pad_sequence(document, True, -1),
            "index": indices,
        }

    def name(self, index: int) -> str:
        first, *more = self.packs[index]
        return f"{self.names[first]} and {len(more)} more" if more else self.names[first]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assign rows to packs of at most `capacity` tokens: longest first, each into the fullest pack that fits it.

    Best-fit decreasing bin packing, as in "Fewer Truncations Improve Language Modeling" (Ding et al. 2024).
    """
    packs: list[list[int]] = []
    free: dict[int, list[int]] = {}  # free tokens -> packs
    free_sizes: list[int] = []  # the keys of `free`, sorted
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(free_sizes, lengths[row])
        if at == len(free_sizes):
            left, pack = capacity, len(packs)
            packs.append([])
        else:
            left = free_sizes[at]
            pack = free[left].pop()
            if not free[left]:
                del free[left], free_sizes[at]
        packs[pack].append(row)
        left -= lengths[row]
        if left:
            if left not in free:
                free[left] = []
                insort(free_sizes, left)
            free[left].append(pack)
    return packs
