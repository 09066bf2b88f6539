"""Tokenizers that a SentencePiece model and a ``vocab.json`` make up together, as tokenizer.json: Marian, M2M100.

SentencePiece (Kudo and Richardson 2018) divides a text into pieces; ``vocab.json`` gives their ids. Marian has a
SentencePiece model for sources and another one for targets, over the same ids.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.models.pretrained.wrapped import import_transformers

MODELS = {
    "MarianTokenizer": ("source.spm", "target.spm"),
    "M2M100Tokenizer": ("sentencepiece.bpe.model", "sentencepiece.bpe.model"),
}
"""Tokenizer in transformers -> the models for its sources and its targets."""
SUFFIXES = ("*.spm", "*.model")
UNKNOWN_COST = 10.0  # SentencePiece scores a character that it does not know this much below its worst piece
NEVER = -1e6  # the score of a piece of the other model, which any other division beats
NORMAL, USER_DEFINED, BYTE = 1, 4, 6  # kinds of pieces
UNIGRAM = 1
BLANK = "\u2581"
HINT = "pip install 'bigmodel[sentencepiece]'"


def require_sentencepiece(folder: Path) -> None:
    """Check that SentencePiece's models in `folder` can be read, where there is no tokenizer.json in it.

    Raises:
        MachineError: the extra ``sentencepiece`` is not installed.
    """
    found = sorted(file.name for suffix in SUFFIXES for file in folder.glob(suffix))
    if found and not (folder / "tokenizer.json").is_file():
        _import_format(folder / found[0])


def _import_format(file: Path) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        missing = "protobuf" if "google" in str(error) else "sentencepiece"
        what = f"{file}, without a tokenizer.json beside it, needs {missing}"
        raise MachineError(what, hint=HINT) from None
    return sentencepiece_model_pb2


def tokenizers_of(theirs: Any, folder: Path) -> tuple[str, str]:
    """The tokenizers for sources and for targets, as JSON, that give the ids of transformers' tokenizer `theirs`.

    Raises:
        InputError: it is a tokenizer of another kind, or its files are damaged.
    """
    name, ids = type(theirs).__name__, theirs.get_vocab()
    if name not in MODELS or (folder / "target_vocab.json").is_file():
        what = f"{folder}: {name} has no tokenizer.json"
        raise InputError(what, "expected one in Hugging Face's format, or Marian's or M2M100's files of one vocabulary")
    special = [token for token in theirs.all_special_tokens if token in ids]
    special += [token for token in ids if token.startswith(">>") and token.endswith("<<")]  # Marian's target languages
    end, unknown = str(theirs.eos_token), str(theirs.unk_token)
    source, target = (_tokenizer_json(folder / file, ids, special, end, unknown) for file in MODELS[name])
    return source, target


def _tokenizer_json(file: Path, ids: Mapping[str, int], special: list[str], end: str, unknown: str) -> str:
    """The tokenizer with the pieces in the SentencePiece model `file` and their `ids`; `special` are no pieces.

    Raises:
        InputError: it is damaged.
    """
    proto = _import_format(file).ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except Exception as error:  # the library's errors are of several kinds
        raise InputError(f"{file}: not a SentencePiece model: {str(error)[:80]}") from None
    pieces = {p.piece: float(p.score) for p in proto.pieces if p.type in (NORMAL, USER_DEFINED, BYTE)}
    if not pieces or max(ids.values()) >= 2 * len(ids):
        what = f"{file}: {len(pieces)} pieces, and ids up to {max(ids.values())}"
        raise InputError(what, "expected a SentencePiece model and its vocab.json")
    bpe = proto.trainer_spec.model_type != UNIGRAM
    model = _bpe(pieces, ids, unknown) if bpe else _unigram(pieces, ids, special, unknown)
    charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
    precompiled = [{"type": "Precompiled", "precompiled_charsmap": charsmap}] if charsmap else []
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    ends = {"type": "Strip", "strip_left": True, "strip_right": True}
    blanks = {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "always", "split": False}
    trimmed = [blanks, {"type": "Fuse"}, {"type": "Replace", "pattern": {"Regex": "^ +| +$"}, "content": ""}]
    flags = {"normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    frame = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}]
    framed = {end: {"id": end, "ids": [ids[end]], "tokens": [end]}}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "model": model,
        "added_tokens": [{"id": ids[t], "content": t, "special": not t.startswith(">>"), **flags} for t in special],
        "normalizer": {"type": "Sequence", "normalizers": [*precompiled, spaces, ends]},
        "pre_tokenizer": blanks, "decoder": {"type": "Sequence", "decoders": trimmed},
        "post_processor": {
            "type": "TemplateProcessing", "single": frame, "pair": frame, "special_tokens": framed,
        },
    })  # fmt: skip


def _unigram(pieces: Mapping[str, float], ids: Mapping[str, int], special: list[str], unknown: str) -> dict[str, Any]:
    """Pieces with their scores, in the order of their ids.

    A piece that only the other side's model has is found where this one knows no piece, as in transformers: a
    character that it does not know is looked up in the common vocabulary. A run of such characters is one unknown
    token there, and several tokens here.
    """
    names = [f"<no token {i}>" for i in range(max(ids.values()) + 1)]
    for token, i in ids.items():
        names[i] = token
    foreign = min(pieces.values()) - UNKNOWN_COST

    def score(name: str) -> float:
        other = foreign if len(name) == 1 else NEVER
        return NEVER if name in special else pieces.get(name, other)

    vocabulary = [[name, score(name)] for name in names]
    return {"type": "Unigram", "unk_id": ids[unknown], "vocab": vocabulary, "byte_fallback": False}


def _bpe(pieces: Mapping[str, float], ids: Mapping[str, int], unknown: str) -> dict[str, Any]:
    """Pieces with the merges that make them, the best first."""
    import_transformers()
    from transformers.tokenization_utils_base import generate_merges

    ranks = {piece: rank for rank, piece in enumerate(pieces) if piece in ids}
    merges = [list(pair) for pair in generate_merges(ranks)]
    return {"type": "BPE", "vocab": dict(ids), "merges": merges, "unk_token": unknown, "fuse_unk": True}
