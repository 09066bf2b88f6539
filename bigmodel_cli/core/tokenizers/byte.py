"""The 256 byte values and ``<end>``."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.core.registry import tokenizers
from bigmodel_cli.core.special_tokens import END
from bigmodel_cli.core.tokenizers.kind import Program, json_with_special, tokenizers_package

PROGRAM = Program("tokens = list(sys.argv[1].encode())\n", '[f"{i:#04x}" for i in range(256)] + ["<end>"]')


class ByteTokenizer:
    size = 257
    special: dict[str, int] = {END: 256}  # noqa: RUF012
    separator = ""

    def encode(self, text: str) -> Sequence[int]:
        return text.encode("utf-8", "surrogatepass")

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def byte_lengths(self) -> list[int]:
        return [1] * 256 + [0]

    def tokens(self) -> Sequence[str]:
        return [f"{i:#04x}" for i in range(256)] + [END]

    def to_json(self) -> str:
        library = tokenizers_package()
        ids = {name: i for i, name in enumerate(byte_names())} | self.special
        found = library.Tokenizer(library.models.BPE(ids, []))
        found.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        found.decoder = library.decoders.ByteLevel()
        return json_with_special(library, found, self.special)


def byte_names() -> list[str]:
    """The printable character that stands for each of the 256 bytes in byte-level BPE (Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b if b in plain else next(others)) for b in range(256)]


@tokenizers.register(program=PROGRAM, lossless=True)
def byte(vocabulary: Sequence[str], special: tuple[tuple[str, int], ...]) -> ByteTokenizer:
    """Bytes; no text is out of vocabulary."""
    return ByteTokenizer()
