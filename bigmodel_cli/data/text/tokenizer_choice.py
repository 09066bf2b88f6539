"""Choose a tokenizer: by name, from a file, or the one of the checkpoint that training starts from.

Does not import torch, because the worker processes of ``data tokenize`` import this module.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.text_files import read_text
from bigmodel_cli.core.registry import tokenizers
from bigmodel_cli.core.special_tokens import END
from bigmodel_cli.core.tokenizers.tokens import tokenizer as build
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.data.download import download

Tokenizer = Annotated[
    str, Field(description="byte, char, gpt2, or a tokenizer.json; auto: the checkpoint's, or byte", min_length=1)
]
GPT2 = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_FILES = {  # as tiktoken pins them
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


WINDOW = 128
"""Tokens of a window for published weights, whose own contexts are so long that a batch would not fit into memory."""


def window_length(like: TextSpec | None) -> int:
    """The default length of a window of running text: the checkpoint's context; for published weights up to WINDOW."""
    if like is None:
        return 64
    return like.context if like.conventions is None else min(like.context, WINDOW)


def as_text_spec(like: object) -> TextSpec | None:
    """`like`, the spec of the checkpoint that training starts from, if it is a text spec."""
    return like if isinstance(like, TextSpec) else None


def choose_tokenizer(
    name: str, like: TextSpec | None, context: int, root: Path, texts: Iterable[str] = (), end: bool = False
) -> TextSpec:
    """The spec of the tokenizer `name`. A char vocabulary is built from `texts`, with ``<end>`` if `end` is set.

    Raises:
        InputError: there is no such tokenizer, or its file is damaged or malicious.
        MachineError: GPT-2's files are not in `root` and cannot be downloaded.
    """
    lossless = [kind for kind, found in tokenizers.found.items() if found.meta.get("lossless")]
    if name == "auto":
        spec = TextSpec("byte", (), context) if like is None else like.with_(context=context, classes=())
    elif name in lossless:
        spec = new_tokenizer(name, texts, (END,) if end else (), context)
    elif name == "gpt2":
        spec = TextSpec("bpe", (gpt2_tokenizer(root),), context)
    elif "/" in name or Path(name).suffix == ".json":
        spec = TextSpec("bpe", (read_text(Path(name).expanduser()),), context)
    else:
        raise InputError(
            f"data.tokenizer = {name!r}", f"expected auto, {', '.join(lossless)}, gpt2, or a path of a tokenizer.json"
        )
    known = build(spec)  # a malicious file is refused here, before any training
    if end and END not in known.special:
        raise InputError("a tokenizer without <end> for several documents", "expected one with <end> or <|endoftext|>")
    return spec


def new_tokenizer(kind: str, texts: Iterable[str], specials: Sequence[str], context: int) -> TextSpec:
    """The spec of a tokenizer of that kind, whose vocabulary comes from `texts` and begins with `specials`."""
    make = tokenizers.get(kind).meta.get("new_vocabulary")
    return TextSpec(kind, make(texts, specials) if make else (), context)


def gpt2_tokenizer(root: Path) -> str:
    """GPT-2's tokenizer (Radford et al. 2019), equal to tiktoken's, from OpenAI's two files in `root`/gpt2.

    Raises:
        MachineError: the files are missing and cannot be downloaded.
        InputError: the files are damaged.
    """
    folder = root / "gpt2"
    for file, checksum in GPT2_FILES.items():
        if not (folder / file).is_file():
            hint = f"fetch vocab.bpe and encoder.json from {GPT2} into {folder}"
            download([GPT2 + file], folder / file, what="gpt2's tokenizer", sha256=checksum, hint=hint)
    return convert_gpt2_files(folder)


def convert_gpt2_files(folder: Path) -> str:
    """Convert ``vocab.bpe`` (merges) and ``encoder.json`` (ids) in `folder` to Hugging Face's tokenizer.json."""
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
