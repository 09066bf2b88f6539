"""Tokenizers: text to ids and back, built from the plain values in a TextSpec.

Their kinds are registered in :mod:`bigmodel_cli.core.tokenizers`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import tokenizers
from bigmodel_cli.core.special_tokens import PAD, SPECIALS, UNKNOWN
from bigmodel_cli.core.specs import TextSpec
from bigmodel_cli.core.tokenizers.bpe_tokenizer import BPETokenizer as BPETokenizer
from bigmodel_cli.core.tokenizers.bpe_tokenizer import require_package as require_package
from bigmodel_cli.core.tokenizers.kind import Tokenizer as Tokenizer

if TYPE_CHECKING:
    from torch import Tensor


def encode_sized(known: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """The ids of `text`, and the bytes of text that each stands for."""
    if isinstance(known, BPETokenizer):
        found, sizes = known.encode_sized(text)
        return list(found), sizes.tolist()
    ids, lengths = list(known.encode(text)), known.byte_lengths()
    return ids, [lengths[i] for i in ids]


def encode_many(known: Tokenizer, texts: Sequence[str]) -> list[Sequence[int]]:
    """The ids of each text. BPE encodes them as one batch, which is faster."""
    if isinstance(known, BPETokenizer):
        return [found.ids for found in known.inner.encode_batch_fast(list(texts), add_special_tokens=False)]
    return [known.encode(text) for text in texts]


@functools.lru_cache(maxsize=8)
def _build(kind: str, vocabulary: tuple[str, ...], special: tuple[tuple[str, int], ...]) -> Tokenizer:
    return tokenizers.get(kind)(vocabulary, special)  # type: ignore[no-any-return]


def tokenizer(spec: TextSpec) -> Tokenizer:
    """The tokenizer that `spec` describes.

    Raises:
        InputError: its kind is unknown, or its vocabulary is invalid.
        MachineError: it is BPE, and the extra ``text`` is not installed.
    """
    return _build(spec.tokenizer, spec.vocabulary, spec.conventions.special if spec.conventions else ())


def target_tokenizer(spec: TextSpec) -> Tokenizer:
    """The tokenizer of targets in translation: Marian's differs from that of sources, with the same ids."""
    own = spec.vocabulary[-1:] if spec.tokenizer == "bpe" else spec.vocabulary
    return _build(spec.tokenizer, own, spec.conventions.special if spec.conventions else ())


def describe_tokenizer(spec: TextSpec) -> dict[str, Any]:
    """The tokenizer in the ``preprocess.json`` of an export: how other programs encode a text."""
    steps = tokenizers.get(spec.tokenizer).meta.get("steps", {})
    return {"tokenizer": spec.tokenizer, "vocabulary": list(spec.vocabulary), "context": spec.context, **steps}


def token_id_map(model: TextSpec, data: TextSpec) -> tuple[int, ...] | None:
    """The model's id for each id of the data, matched by name; ``<unk>`` (or -1) for tokens that the model lacks.

    None if the tokenizers are equal.

    Raises:
        InputError: the tokenizers have nothing in common.
    """
    if (model.tokenizer, model.vocabulary) == (data.tokenizer, data.vocabulary):
        return None
    known, theirs = tokenizer(model), tokenizer(data)
    ids = {name: i for i, name in enumerate(known.tokens())}
    if model.tokenizer != data.tokenizer or not (set(ids) - set(SPECIALS)) & set(theirs.tokens()):
        what = f"the data uses {data.tokenizer} tokens, the model uses {model.tokenizer}"
        raise InputError(what, "expected the same tokenizer", "--set data.tokenizer=" + model.tokenizer)
    return tuple(ids.get(name, known.special.get(UNKNOWN, -1)) for name in theirs.tokens())


def encode_truncated(text: str, spec: TextSpec, framed: bool = False) -> list[int]:
    """The ids of `text`, truncated to the context. For `framed`, see :func:`encode_padded`."""
    known = tokenizer(spec)
    if framed and isinstance(known, BPETokenizer):
        return list(known.framed(text, spec.context))
    return list(known.encode(text))[: spec.context]


def is_cut(text: str, spec: TextSpec, framed: bool = False) -> bool:
    """Whether :func:`encode_truncated` leaves out some of `text`."""
    known = tokenizer(spec)
    around = known.inner.num_special_tokens_to_add(False) if framed and isinstance(known, BPETokenizer) else 0
    return len(known.encode(text)) + around > spec.context


def encode_padded(texts: Sequence[str], spec: TextSpec, framed: bool = False) -> Tensor:
    """(B,T) int64 ids, padded at the end with ``<pad>``; T is at least 1 and at most the context.

    `framed`: add the tokenizer's own special tokens around each text, if it has any; for classification.
    """
    import torch

    rows = [encode_truncated(text, spec, framed) for text in texts]
    longest = max(1, *map(len, rows), 1)
    pad = tokenizer(spec).special.get(PAD, 0)
    return torch.tensor([row + [pad] * (longest - len(row)) for row in rows])


def train_bpe(texts: Iterable[str], size: int, specials: Sequence[str] = SPECIALS) -> str:
    """Train a byte-level BPE tokenizer of `size` tokens; returns the JSON of Hugging Face's tokenizers.

    Raises:
        MachineError: the extra ``text`` is not installed.
    """
    library = require_package("tokenizers")
    found = library.Tokenizer(library.models.BPE())
    found.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(texts, trainer)
    return found.to_str()  # type: ignore[no-any-return]
