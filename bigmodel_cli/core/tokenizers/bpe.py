"""Byte pair encoding (Sennrich et al. 2016) and other tokenizers of Hugging Face's format."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import tokenizers
from bigmodel_cli.core.tokenizers.bpe_tokenizer import BPETokenizer
from bigmodel_cli.core.tokenizers.kind import Program

TOKENS = """\
known = Tokenizer.from_str(steps["vocabulary"][0])
known.no_padding()
known.no_truncation()
known.encode_special_tokens = True  # "<end>" in a text is ordinary text
found = known.encode(sys.argv[1], add_special_tokens=False)
"""
FRAMED = """\
found.truncate(max(steps["context"] - known.num_special_tokens_to_add(False), 0))
tokens = known.post_process(found, add_special_tokens=True).ids
"""
PROGRAM = Program(
    TOKENS,
    names="sorted(known.get_vocab(), key=known.get_vocab().get)",
    framed=FRAMED,
    begun='tokens = [*steps.get("conventions", {}).get("before", []), *found.ids]\n',
    needs=("tokenizers>=0.21",),
    imports="\nfrom tokenizers import Tokenizer",
)


@tokenizers.register(program=PROGRAM)
def bpe(vocabulary: Sequence[str], special: tuple[tuple[str, int], ...]) -> BPETokenizer:
    """Parts of words, as the JSON of Hugging Face's tokenizers describes them."""
    if not vocabulary or not isinstance(vocabulary[0], str):
        raise InputError("a bpe tokenizer without its vocabulary", "expected the JSON of Hugging Face's tokenizers")
    return BPETokenizer(vocabulary[0], dict(special))
