"""Converts our tokenizers to Hugging Face's ``tokenizer.json``, with the same ids for any text."""

from __future__ import annotations

import json
from typing import Any

from bigmodel_cli.core.special_tokens import PAD, SPECIALS, UNKNOWN
from bigmodel_cli.core.tokens import require_package, tokenizer
from bigmodel_cli.core.types import TextSpec


def byte_names() -> list[str]:
    """The printable character that stands for each of the 256 bytes in byte-level BPE (Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b if b in plain else next(others)) for b in range(256)]


def tokenizer_json(spec: TextSpec) -> str:
    """The tokenizer in `spec` as JSON for Hugging Face's tokenizers.

    Raises:
        MachineError: the extra ``text`` is not installed.
    """
    if spec.tokenizer == "bpe":
        return spec.vocabulary[0]
    library = require_package("tokenizers")
    known = tokenizer(spec)
    if spec.tokenizer == "byte":
        ids = {name: i for i, name in enumerate(byte_names())} | known.special
        found = library.Tokenizer(library.models.BPE(ids, []))
        found.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        found.decoder = library.decoders.ByteLevel()
    else:
        ids = {name: i for i, name in enumerate(spec.vocabulary)}
        unknown = {"unk_token": UNKNOWN} if UNKNOWN in ids else {}
        found = library.Tokenizer(library.models.WordLevel(ids, **unknown))
        if spec.tokenizer == "word":
            found.normalizer = library.normalizers.Lowercase()
            found.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
        else:
            any_character = library.Regex(r"[\s\S]")
            found.pre_tokenizer = library.pre_tokenizers.Split(any_character, "isolated")
            found.decoder = library.decoders.Fuse()
    added = [library.AddedToken(s, special=True, normalized=False) for s in known.special if s in SPECIALS]
    found.add_special_tokens(added)
    return found.to_str()  # type: ignore[no-any-return]


def tokenizer_config(spec: TextSpec) -> dict[str, Any]:
    """The contents of ``tokenizer_config.json``."""
    known = tokenizer(spec)
    names = {i: name for name, i in json.loads(tokenizer_json(spec))["model"]["vocab"].items()} if known.special else {}
    roles = {"pad_token": PAD, "unk_token": UNKNOWN, "bos_token": SPECIALS[2], "eos_token": SPECIALS[3]}
    names_by_role = {role: names.get(known.special[s], s) for role, s in roles.items() if s in known.special}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": spec.context, **names_by_role}
