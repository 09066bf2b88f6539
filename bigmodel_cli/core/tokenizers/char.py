"""The characters of the training text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import tokenizers
from bigmodel_cli.core.special_tokens import UNKNOWN
from bigmodel_cli.core.tokenizers.kind import IDS, NAMES, Listed, Program, json_with_special, tokenizers_package

PROGRAM = Program(IDS + 'tokens = [ids[c] if c in ids else ids["<unk>"] for c in sys.argv[1]]\n', NAMES)


class CharTokenizer(Listed):
    def encode(self, text: str) -> Sequence[int]:
        try:
            return [self.ids[c] for c in text]
        except KeyError as error:
            if UNKNOWN in self.ids:
                return [self.ids.get(c, self.ids[UNKNOWN]) for c in text]
            what = f"the character {error.args[0]!r} is not in the vocabulary"
            raise InputError(what, f"expected some of the {self.size} characters the model was trained on") from None

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("" if self.vocabulary[i] in self.special else self.vocabulary[i] for i in ids)

    def byte_lengths(self) -> list[int]:
        return [0 if t in self.special else len(t.encode("utf-8", "surrogatepass")) for t in self.vocabulary]

    def to_json(self) -> str:
        library = tokenizers_package()
        found = self.level(library)
        found.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(r"[\s\S]"), "isolated")
        found.decoder = library.decoders.Fuse()
        return json_with_special(library, found, self.special)


def char_vocabulary(texts: Iterable[str], specials: Sequence[str] = ()) -> tuple[str, ...]:
    """The vocabulary of a char tokenizer: `specials`, then the characters in code point order."""
    return (*specials, *sorted(set().union(*texts)))


@tokenizers.register(new_vocabulary=char_vocabulary, program=PROGRAM, lossless=True)
def char(vocabulary: Sequence[str], special: tuple[tuple[str, int], ...]) -> CharTokenizer:
    """The characters of the training text."""
    return CharTokenizer("char", vocabulary)
