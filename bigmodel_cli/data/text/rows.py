"""Encoded texts of one split, in flat arrays: a million of them take the memory of their tokens. Shape: T tokens."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable

import torch
from torch import Tensor

from bigmodel_cli.core.splits import name_hash
from bigmodel_cli.core.tokenizers.tokens import BPETokenizer, is_cut, tokenizer
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.data.thread_map import REPORT_EVERY, report_progress

HEAD = 61  # characters of each text that are kept to name it
NO_TOKENS = (0,)


class TextRows:
    """The texts' ids (T,) int32, the beginning of each text, and a hash of each text or of its group."""

    def __init__(
        self,
        tokens: array[int],
        ends: array[int],
        heads: bytes,
        head_ends: array[int],
        groups: array[int],
        contents: array[int],
        cut: int = 0,
    ) -> None:
        self._tokens = torch.frombuffer(tokens, dtype=torch.int32) if tokens else torch.zeros(0, dtype=torch.int32)
        self._ends, self._heads, self._head_ends = ends, heads, head_ends
        self.cut = cut
        """How many texts are longer than what is kept of them."""
        self.contents = _int64(contents)
        """(n,) int64: a hash of each text."""
        self.groups = _int64(groups) if groups else self.contents
        """(n,) int64: equal for texts that must stay on one side of a split."""

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def lengths(self) -> Tensor:
        """(n,) int64: the tokens of each text."""
        return _int64(self._ends).diff(prepend=torch.zeros(1, dtype=torch.int64))

    def __getitem__(self, index: int) -> Tensor:
        return self._tokens[self._ends[index - 1] if index else 0 : self._ends[index]]

    def head(self, index: int) -> str:
        """The first characters of text `index`, to show it."""
        raw = self._heads[self._head_ends[index - 1] if index else 0 : self._head_ends[index]]
        text = raw.decode("utf-8", "surrogatepass")
        return text if len(text) < HEAD else text[: HEAD - 1] + "…"


def _int64(values: array[int]) -> Tensor:
    return torch.frombuffer(values, dtype=torch.int64) if values else torch.zeros(0, dtype=torch.int64)


def head_of(text: str) -> bytes:
    """What is kept of `text` to show it."""
    return text[:HEAD].encode("utf-8", "surrogatepass")


class Names:
    """A hash of each text, and of its group if any text has one; else `groups` is empty."""

    def __init__(self) -> None:
        self.contents, self.groups = array("q"), array("q")

    def add(self, text: str, group: str | None) -> None:
        content = name_hash(text)
        if group is not None and not self.groups:
            self.groups.extend(self.contents)
        self.contents.append(content)
        if group is not None:
            self.groups.append(name_hash(group))
        elif self.groups:
            self.groups.append(content)


def encode_rows(
    texts: Iterable[tuple[str, str | None]], spec: TextSpec, what: str = "encoding texts", total: int = 0
) -> TextRows:
    """Encode (text, group) pairs, each text truncated to the context; without a group, equal texts are one.

    `what` and `total` are for the progress bar.
    """
    known, most = tokenizer(spec), spec.context
    framed = isinstance(known, BPETokenizer)
    tokens, ends, head_ends = array("i"), array("q"), array("q")
    names, heads = Names(), bytearray()
    reported, cut = time.monotonic(), 0
    for count, (text, group) in enumerate(texts, 1):
        ids = known.framed(text, most) if isinstance(known, BPETokenizer) and framed else known.encode(text)[:most]
        cut += len(ids) == most and is_cut(text, spec, framed)
        tokens.extend(ids or NO_TOKENS)
        ends.append(len(tokens))
        heads += head_of(text)
        head_ends.append(len(heads))
        names.add(text, group)
        if not count % 4096 and time.monotonic() - reported > REPORT_EVERY:
            reported = time.monotonic()
            report_progress(what, min(count, total - 1), total)
    return TextRows(tokens, ends, bytes(heads), head_ends, names.groups, names.contents, cut)
