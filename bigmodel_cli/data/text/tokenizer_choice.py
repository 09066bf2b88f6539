"""Which tokenizer a text is cut with: by name, by file, or the one of the checkpoint that is gone on from.

Without torch, since the processes of ``data tokenize`` start with this.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.special_tokens import END
from bigmodel_cli.core.text_files import read_text
from bigmodel_cli.core.tokens import char_vocabulary
from bigmodel_cli.core.tokens import tokenizer as build
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.data.download import download

Tokenizer = Annotated[
    str, Field(description="byte, char, gpt2, or a tokenizer.json; auto: the start's, else byte", min_length=1)
]
GPT2 = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_FILES = {  # as tiktoken pins them
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def of_text(like: object) -> TextSpec | None:
    """The spec of the checkpoint that is gone on from, where that is of text."""
    return like if isinstance(like, TextSpec) else None


def chosen(
    name: str, like: TextSpec | None, context: int, root: Path, texts: Iterable[str] = (), end: bool = False
) -> TextSpec:
    """The spec of the tokenizer `name`; a char vocabulary is that of `texts`, with ``<end>`` where `end` is asked for.

    Raises:
        InputError: there is no such tokenizer, or its file is damaged or hostile.
        MachineError: GPT-2's files are neither in `root` nor to be had.
    """
    if name == "auto":
        kept = TextSpec("byte", (), context) if like is None else like.with_(context=context, classes=())
    elif name == "byte":
        kept = TextSpec("byte", (), context)
    elif name == "char":
        kept = TextSpec("char", char_vocabulary(texts, (END,) if end else ()), context)
    elif name == "gpt2":
        kept = TextSpec("bpe", (gpt2(root),), context)
    elif "/" in name or Path(name).suffix == ".json":
        kept = TextSpec("bpe", (read_text(Path(name).expanduser()),), context)
    else:
        raise InputError(f"data.tokenizer = {name!r}", "expected auto, byte, char, gpt2, or a path of a tokenizer.json")
    known = build(kept)  # a hostile file is refused here, before anything is trained
    if end and END not in known.special:
        raise InputError("a tokenizer without <end> for several documents", "expected one with <end> or <|endoftext|>")
    return kept


def gpt2(root: Path) -> str:
    """GPT-2's tokenizer (Radford et al. 2019), the same tokens as tiktoken's, from OpenAI's two files in `root`/gpt2.

    Raises:
        MachineError: they are not there and cannot be downloaded.
        InputError: they are there, and not what they were.
    """
    folder = root / "gpt2"
    for file, checksum in GPT2_FILES.items():
        if not (folder / file).is_file():
            hint = f"fetch vocab.bpe and encoder.json from {GPT2} into {folder}"
            download([GPT2 + file], folder / file, what="gpt2's tokenizer", sha256=checksum, hint=hint)
    return from_gpt2_files(folder)


def from_gpt2_files(folder: Path) -> str:
    """``vocab.bpe`` (merges) and ``encoder.json`` (ids) in `folder` as the JSON of Hugging Face's tokenizers."""
    merges = [line for line in read_text(folder / "vocab.bpe").split("\n")[1:] if line]
    try:
        vocabulary = json.loads(read_text(folder / "encoder.json"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder / 'encoder.json'}: not JSON: {error}") from None
    end = "<|endoftext|>"
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = {"content": end, "special": True, "normalized": False, "single_word": False, "lstrip": False,
             "rstrip": False}  # fmt: skip
    identity = vocabulary.get(end) if isinstance(vocabulary, dict) else None
    return json.dumps({
        "version": "1.0", "added_tokens": [] if identity is None else [{"id": identity, **added}],
        "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    })  # fmt: skip
