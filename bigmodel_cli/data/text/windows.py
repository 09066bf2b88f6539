"""Text as context windows of tokens. Shapes: B batch, T tokens (the context)."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.text_files import read_text
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.special_tokens import END
from bigmodel_cli.core.tokenizers.framing import conventions
from bigmodel_cli.core.tokenizers.tokens import BPETokenizer, tokenizer
from bigmodel_cli.core.types import Batch, DataBundle, TextSpec
from bigmodel_cli.data.download import download
from bigmodel_cli.data.text.tokenizer_choice import as_text_spec, choose_tokenizer

Context = Annotated[int, Field(ge=2, le=1 << 17, description="tokens per context window")]
Separate = Annotated[
    bool, Field(description="mask documents in a window from each other, and do not predict one from another")
]
CharTokenizer = Annotated[
    str, Field(description="char, byte, gpt2, or a tokenizer.json; auto: the checkpoint's, or char", min_length=1)
]
SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/"
    "data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


class TokenArray(Protocol):
    """A long sequence of token ids, in memory or in files."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: Tensor) -> Tensor:
        """The ids at positions `places` (B,T) int64."""
        ...


@dataclass(frozen=True)
class Windows:
    """One split: `tokens` (n,), cut into consecutive windows of `context` tokens.

    A gathered window is twice as long, so that training can shift its start anywhere in the
    first half; the text wraps around at its end. ``length`` (B,) counts the valid targets of
    the unshifted window.

    With `end`, the id of the end-of-document token, ``document`` (B,2T) numbers the documents of a window. With
    `sizes` (n,), the bytes of text that each token stands for, ``bytes`` (B,2T) are those of a window's tokens.
    """

    tokens: TokenArray
    context: int
    split: str
    end: int | None = None
    sizes: Tensor | None = None

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.context)

    def gather(self, indices: Tensor) -> Batch:
        starts = indices * self.context
        places = (starts[:, None] + torch.arange(2 * self.context)) % len(self.tokens)
        length = (len(self.tokens) - 1 - starts).clamp(max=self.context)
        batch = {"tokens": self.tokens[places], "length": length, "index": indices}
        if self.end is not None:
            batch["document"] = torch.nn.functional.pad(batch["tokens"][:, :-1] == self.end, (1, 0)).cumsum(1)
        if self.sizes is not None:
            batch["bytes"] = self.sizes[places]
        return batch

    def name(self, index: int) -> str:
        return f"{self.split}[{index * self.context}:{(index + 1) * self.context}]"


@data.register(task="language_modeling", files=("input.txt",))
def tinyshakespeare(
    root: Path, like: TextSpec | None = None, *, context: Context = 64, tokenizer: CharTokenizer = "auto"
) -> DataBundle:
    """1.1 MB of Shakespeare's plays, split 90/10 as in nanoGPT (Karpathy 2015)."""
    file = root / "tinyshakespeare" / "input.txt"
    if not file.is_file():
        hint = f"--data-dir DIR with {file.relative_to(root)} in it, or --data FILE.txt, a text of your own"
        download([SHAKESPEARE], file, sha256=SHAKESPEARE_SHA256, what="tinyshakespeare", hint=hint)
    text = read_text(file)
    like = as_text_spec(like)
    spec = choose_tokenizer("char" if (tokenizer, like) == ("auto", None) else tokenizer, like, context, root, [text])
    return build_windows(spec, {"train": text[: int(len(text) * 0.9)], "val": text[int(len(text) * 0.9) :]})


def build_windows(
    spec: TextSpec, texts: Mapping[str, str | Sequence[str]], notes: Sequence[str] = (), separate: bool = False
) -> DataBundle:
    """Build the bundle from one text per split, or from several documents, joined with ``<end>`` after each.

    With `separate`, documents are masked from each other, and the first token of each has no loss.
    """
    end = tokenizer(spec).special.get(END)

    @functools.cache
    def load(split: str) -> Windows:
        found = texts[split]
        if isinstance(found, str):
            ids, sizes = encode(found, spec)
        else:
            ends = torch.tensor([end], dtype=_dtype(spec))
            begins = torch.tensor(conventions(spec).before, dtype=ends.dtype)
            around = begins.int() * 0, ends.int() * 0  # they are no text
            parts = [encode(text, spec) for text in found]
            ids = torch.cat([part for text, _ in parts for part in (begins, text, ends)])
            each = [part for _, size in parts if size is not None for part in (around[0], size, around[1])]
            sizes = torch.cat(each) if each else None
        if len(ids) < 2:
            raise InputError(f"the {split} text has {len(ids)} tokens", "expected at least 2")
        return Windows(ids, spec.context, split, end if separate else None, sizes)

    if end is None and not all(isinstance(t, str) for t in texts.values()):
        raise InputError("a tokenizer without <end> for several documents", "expected one with <end> or <|endoftext|>")
    digest = hashlib.sha256(repr(sorted(texts.items())).encode("utf-8", "surrogatepass")).hexdigest()
    return DataBundle(spec, {split: functools.partial(load, split) for split in texts}, digest, notes)


def encode(text: str, spec: TextSpec) -> tuple[Tensor, Tensor | None]:
    """`text` as (n,) ids, in the smallest dtype that holds them, and the bytes of text of each, (n,) int32.

    The second is None where a token's name tells its bytes.
    """
    found = tokenizer(spec)
    if isinstance(found, BPETokenizer) and not found.names_every_byte:
        ids, sizes = found.encode_sized(text)
        return torch.tensor(list(ids), dtype=_dtype(spec)), torch.from_numpy(sizes).int()
    return torch.tensor(list(found.encode(text)), dtype=_dtype(spec)), None


def _dtype(spec: TextSpec) -> torch.dtype:
    size = tokenizer(spec).size
    return torch.uint8 if size <= 256 else torch.int16 if size <= 1 << 15 else torch.int32
