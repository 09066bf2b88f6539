"""What every kind of tokenizer is, and what the kinds share.

A kind is a function of a vocabulary and of the ids of special tokens that are known beforehand. Its registration may
name

- ``new_vocabulary``: a function of texts and special tokens that returns a new vocabulary; without it, there is none to
  make (``byte``), or it comes from elsewhere (``bpe``);
- ``split``: for kinds of words, the function that divides a text into them. It never joins what white space
  separates, so that a text may be divided at white space first;
- ``lossless``: a text can be made from its ids again, as language models need it;
- ``steps``: what ``preprocess.json`` of an export says beside the kind and its vocabulary;
- ``program``: the lines of an export's ``example.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.special_tokens import PAD, SPECIALS, UNKNOWN
from bigmodel_cli.core.tokenizers.bpe_tokenizer import require_package
from bigmodel_cli.core.tokenizers.files import MAX_TOKENS


class Tokenizer(Protocol):
    """`size` is the number of ids; `special` maps the special tokens that exist to their ids.

    `separator` is what stands between two tokens that are shown.
    """

    size: int
    special: dict[str, int]
    separator: str

    def encode(self, text: str) -> Sequence[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def byte_lengths(self) -> list[int]:
        """The number of UTF-8 bytes of each id; 0 for special tokens."""
        ...

    def tokens(self) -> Sequence[str]:
        """The name of each id. Tokens of two vocabularies are the same if their names are equal."""
        ...

    def to_json(self) -> str:
        """``tokenizer.json`` of Hugging Face's tokenizers, with the same ids for any text."""
        ...


@dataclass(frozen=True)
class Program:
    """The lines of ``example.py`` that make `tokens` of ``sys.argv[1]``; ``steps`` is ``preprocess.json``.

    `tokens` begins them. `framed` follows for classes, and `begun` for the beginning of a text that goes on. `names` is
    an expression for the name of each id. `needs` and `imports` are of the packages.
    """

    tokens: str
    names: str
    framed: str = ""
    begun: str = ""
    needs: tuple[str, ...] = ()
    imports: str = ""


IDS = 'ids = {token: i for i, token in enumerate(steps["vocabulary"])}\n'
NAMES = 'steps["vocabulary"]'


class Listed:
    """A tokenizer whose vocabulary lists its tokens by id.

    Raises:
        InputError: the vocabulary is empty, a token occurs twice or is no text, or one of `needed` is missing.
    """

    separator = ""

    def __init__(self, kind: str, vocabulary: Sequence[str], needed: Sequence[str] = ()) -> None:
        if not vocabulary or not all(isinstance(token, str) for token in vocabulary):
            raise InputError(f"a {kind} tokenizer without its vocabulary", "expected a list of tokens")
        if len(set(vocabulary)) != len(vocabulary) or len(vocabulary) > MAX_TOKENS:
            raise InputError("a duplicate token in the vocabulary", f"expected up to {MAX_TOKENS} different ones")
        if not set(needed) <= set(vocabulary):
            raise InputError(f"a {kind} tokenizer without {' and '.join(needed)}", "expected both")
        self.vocabulary, self.size = vocabulary, len(vocabulary)
        self.ids = {token: i for i, token in enumerate(vocabulary)}
        self.special = {s: self.ids[s] for s in SPECIALS if s in self.ids}

    def tokens(self) -> Sequence[str]:
        return self.vocabulary

    def level(self, library: Any) -> Any:
        """Hugging Face's tokenizer of this vocabulary, which does not divide a text yet."""
        unknown = {"unk_token": UNKNOWN} if UNKNOWN in self.ids else {}
        return library.Tokenizer(library.models.WordLevel(self.ids, **unknown))


NEEDED = (PAD, UNKNOWN)
"""What a tokenizer of words must have."""


def tokenizers_package() -> Any:
    """Hugging Face's tokenizers.

    Raises:
        MachineError: the extra ``text`` is not installed.
    """
    return require_package("tokenizers")


def json_with_special(library: Any, found: Any, special: Mapping[str, int]) -> str:
    """``tokenizer.json`` of `found`, in which `special` are special tokens."""
    found.add_special_tokens([library.AddedToken(s, special=True, normalized=False) for s in special if s in SPECIALS])
    return found.to_str()  # type: ignore[no-any-return]
