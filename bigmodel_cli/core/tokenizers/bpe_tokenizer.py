"""Tokenizers of Hugging Face's format, tokenizer.json: byte-level BPE, SentencePiece, WordPiece."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from json import dumps, loads
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.errors import CommandEnd, InputError, MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.special_tokens import ALIASES, SPECIALS
from bigmodel_cli.core.tokenizers.files import MAX_TOKENS, checked_tokenizer

if TYPE_CHECKING:
    import numpy as np


@contextlib.contextmanager
def library_errors() -> Iterator[None]:
    """Calls into the library tokenizers, which raises plain Exception for any problem, and BaseException as it panics.

    Raises:
        InputError: in the place of both.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, (CommandEnd, KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit)):
            raise
        raise InputError(f"not a tokenizer: {error}", "expected the JSON of Hugging Face's tokenizers") from None


class BPETokenizer:
    """A tokenizer from the JSON of Hugging Face's tokenizers; `special` overrules the names it is guessed from."""

    separator = ""

    def __init__(self, json: str, special: Mapping[str, int] = MappingProxyType({})) -> None:
        library = require_package("tokenizers")
        self.json, values = json, checked_tokenizer(json)
        with library_errors():
            self.inner = library.Tokenizer.from_str(dumps(values))
            self.inner.encode_special_tokens = True  # "<end>" in a text is ordinary text
            self.inner.encode("A probe: 12 caf\u00e9\n")
            named = self.inner.get_vocab()
            self.size = max(named.values(), default=-1) + 1
        holes = self.size - len(set(named.values()))  # published vocabularies have some
        if not 0 < self.size <= MAX_TOKENS or len(set(named.values())) < len(named) or holes > len(named):
            raise InputError(f"tokenizer with {self.size} tokens", "expected each id once")
        found = {s: next((named[name] for name in (s, *ALIASES[s]) if name in named), None) for s in SPECIALS}
        self.special = {s: i for s, i in (found | dict(special)).items() if i is not None}
        added = values.get("added_tokens") or []
        self.added = {token["content"]: bool(token.get("special")) for token in added}
        self.hidden = {token["id"] for token in added if token.get("special")} | set(self.special.values())
        self.named, self.byte_level = named, "ByteLevel" in dumps(values.get("decoder") or values.get("pre_tokenizer"))

    def encode(self, text: str) -> Sequence[int]:
        return self.inner.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]

    def framed(self, text: str, most: int) -> Sequence[int]:
        """At most `most` ids of `text` with the tokenizer's special tokens, such as BERT's ``[CLS] ... [SEP]``."""
        found = self.inner.encode(text, add_special_tokens=False)
        found.truncate(max(most - self.inner.num_special_tokens_to_add(False), 0))
        return self.inner.post_process(found, add_special_tokens=True).ids  # type: ignore[no-any-return]

    @functools.cached_property
    def _control(self) -> Any:
        """The tokenizer for what a chat template writes, whose special tokens are no ordinary text."""
        copy = require_package("tokenizers").Tokenizer.from_str(self.inner.to_str())
        copy.encode_special_tokens = False
        return copy

    def encode_spans(self, text: str, special: bool = False, begins: bool = True) -> list[tuple[int, tuple[int, int]]]:
        """The ids of `text` with the characters (from, to) of each.

        `special`: special tokens in it count as such. `begins`: it is the beginning of a text; otherwise it follows
        other text, and SentencePiece puts no blank before it.
        """
        library = self._control if special else self.inner
        lead = "" if begins else "\n"
        found = library.encode(lead + text, add_special_tokens=False)
        skip = len(library.encode(lead, add_special_tokens=False).ids)
        spans = [(start - len(lead), end - len(lead)) for start, end in found.offsets]
        return list(zip(found.ids, spans, strict=True))[skip:]

    @functools.cached_property
    def names_every_byte(self) -> bool:
        """Whether the tokens of a text name all of its bytes, as in byte-level BPE: nothing is changed or left out."""
        values = loads(self.inner.to_str())
        added = '"add_prefix_space": true' in dumps(values.get("pre_tokenizer"))
        return self.byte_level and values.get("normalizer") is None and not added

    def encode_sized(self, text: str) -> tuple[Sequence[int], np.ndarray[Any, Any]]:
        """The ids of `text`, and the bytes of it that each stands for; see :func:`span_bytes`."""
        found = self.inner.encode(text, add_special_tokens=False)
        return found.ids, span_bytes(text, found.offsets)

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode([i for i in ids if i not in self.hidden], skip_special_tokens=False)  # type: ignore[no-any-return]

    def byte_lengths(self) -> list[int]:
        # In byte-level BPE each character of a token's name stands for one byte.
        count = len if self.byte_level else _text_bytes
        lengths = [0] * self.size  # an id without a token has no text
        for token, i in self.named.items():
            lengths[i] = 0 if i in self.hidden else len(token.encode()) if token in self.added else count(token)
        return lengths

    def to_json(self) -> str:
        return self.json

    def tokens(self) -> Sequence[str]:
        names = [f"<no token {i}>" for i in range(self.size)]
        for token, i in self.named.items():
            names[i] = token
        return names


def span_bytes(text: str, spans: Sequence[tuple[int, int]]) -> np.ndarray[Any, Any]:
    """(T,) the bytes of `text` that each token stands for, given its characters (from, to).

    A token has those up to its end that no earlier one has, so they add up to all bytes of the text, also where the
    tokenizer changes or drops some, such as blanks or accents.
    """
    import numpy as np

    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = 1 + (codes >= 1 << 7) + (codes >= 1 << 11) + (codes >= 1 << 16)
    place = np.concatenate(([0], np.cumsum(lengths)))
    ends = np.array([end for _, end in spans], np.int64)
    if len(ends):
        ends = np.maximum.accumulate(ends)
        ends[-1] = len(codes)
    return np.diff(place[ends], prepend=0)


def _text_bytes(token: str) -> int:
    """The bytes of text that a token of SentencePiece or WordPiece stands for; ``<0x0A>`` is one byte."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return 1
    return len(token.removeprefix("##").replace("\u2581", " ").encode())


def require_package(package: str) -> Any:
    """Import `package`, which the extra ``text`` installs.

    Raises:
        MachineError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MachineError(f"this needs {package}: {error}", hint=install_line("text")) from None
