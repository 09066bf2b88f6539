"""Text as windows of tokens. Shapes: B batch, T tokens (the context)."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.text_files import read_text
from bigmodel_cli.core.tokens import END, characters_of, tokenizer
from bigmodel_cli.core.types import Batch, DataBundle, TextSpec

Context = Annotated[int, Field(ge=2, le=1 << 17, description="tokens a window")]


@dataclass(frozen=True)
class Windows:
    """One split: `tokens` (n,), cut into windows of `context` that follow each other.

    A gathered window is twice as long, so that training can start it anywhere in its
    first half; the end of the text goes on at its beginning. ``length`` (B,) says how
    many targets of the unshifted window are real.
    """

    tokens: Tensor
    context: int
    split: str

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.context)

    def gather(self, indices: Tensor) -> Batch:
        starts = indices * self.context
        places = (starts[:, None] + torch.arange(2 * self.context)) % len(self.tokens)
        length = (len(self.tokens) - 1 - starts).clamp(max=self.context)
        return {"tokens": self.tokens[places], "length": length, "index": indices}

    def name(self, index: int) -> str:
        return f"{self.split}[{index * self.context}:{(index + 1) * self.context}]"


@data.register()
def tinyshakespeare(root: Path, *, context: Context = 64, tokenizer: Literal["char", "byte"] = "char") -> DataBundle:
    """1.1 MB of Shakespeare's plays (Karpathy 2015); the first 90% train, the last 10% validate, as in nanoGPT."""
    file = root / "tinyshakespeare" / "input.txt"
    text = read_text(file)
    spec = TextSpec(tokenizer, characters_of([text]) if tokenizer == "char" else (), context)
    return windows(spec, {"train": text[: int(len(text) * 0.9)], "val": text[int(len(text) * 0.9) :]})


def windows(spec: TextSpec, texts: Mapping[str, str | Sequence[str]]) -> DataBundle:
    """The bundle of one text a split, or of several documents that follow each other, ``<end>`` between them."""

    @functools.cache
    def load(split: str) -> Windows:
        found = texts[split]
        if isinstance(found, str):
            ids = encode(found, spec)
        else:
            end = torch.tensor([tokenizer(spec).special[END]])
            ids = torch.cat([part for text in found for part in (encode(text, spec), end.to(encode("", spec).dtype))])
        if len(ids) < 2:
            raise InputError(f"the {split} text has {len(ids)} tokens", "expected at least 2")
        return Windows(ids, spec.context, split)

    if not all(isinstance(t, str) for t in texts.values()) and END not in tokenizer(spec).special:
        raise InputError("a tokenizer without <end> for several documents", "expected one with <end> or <|endoftext|>")
    digest = hashlib.sha256(repr(sorted(texts.items())).encode("utf-8", "surrogatepass")).hexdigest()
    return DataBundle(spec, {split: functools.partial(load, split) for split in texts}, digest)


def encode(text: str, spec: TextSpec) -> Tensor:
    """`text` as (n,) ids, in the smallest type that holds them."""
    found = tokenizer(spec)
    kind = torch.uint8 if found.size <= 256 else torch.int16 if found.size <= 1 << 15 else torch.int32
    return torch.tensor(list(found.encode(text)), dtype=kind)
