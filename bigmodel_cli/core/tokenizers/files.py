"""Checks an untrusted ``tokenizer.json`` before Hugging Face's library loads it.

The library runs no code from the file. But a file can still request padding to a billion tokens, a
normalizer that doubles a text thirty times, or a regular expression that takes exponential time.
"""

from __future__ import annotations

import base64
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.json_lines import reject_nan, unique_keys

MAX_BYTES = 64_000_000
MAX_TOKENS = 1 << 20
MAX_COMPONENTS = 32  # normalizers, pre-tokenizers, decoders and post-processors
MAX_PATTERN_CHARS = 2_000  # characters of a regular expression
MAX_GROWTH = 64  # factor by which normalizers, or decoders, may lengthen a text
MAX_TOKEN_CHARS = 4_096  # of a token, since a few ids become a text of that many characters each
MAX_AFFIX_CHARS = 256  # of what a model puts before or after every part of a word
MAX_FRAME_TOKENS = 256  # that a template puts around a text
MAX_WORD_CHARS = 10_000  # of a word that WordPiece divides, in time that grows with the square
MODELS = ("BPE", "WordPiece", "WordLevel", "Unigram")
COMPONENTS = {
    "normalizer": (
        "Sequence", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "BertNormalizer", "Strip",
        "Replace", "Prepend", "ByteLevel", "Precompiled",
    ),
    "pre_tokenizer": (
        "Sequence", "ByteLevel", "Whitespace", "WhitespaceSplit", "Digits", "Punctuation", "Metaspace", "Split",
        "BertPreTokenizer", "UnicodeScripts", "CharDelimiterSplit",
    ),
    "post_processor": ("Sequence", "ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing"),
    "decoder": (
        "Sequence", "ByteLevel", "WordPiece", "Metaspace", "BPEDecoder", "ByteFallback", "Fuse", "Strip", "Replace",
        "CTC",
    ),
}  # fmt: skip
EXPECTED = "expected the JSON of Hugging Face's tokenizers"


def checked_tokenizer(text: str) -> dict[str, Any]:
    """The values in the JSON `text` of a tokenizer, without padding and truncation.

    Raises:
        InputError: it is not the JSON of a tokenizer, or exceeds one of the limits above.
    """
    if len(text) > MAX_BYTES:
        raise InputError(f"tokenizer of {len(text)} bytes", f"expected at most {MAX_BYTES}")
    try:
        values = json.loads(text, object_pairs_hook=unique_keys, parse_constant=reject_nan)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a tokenizer: {error}", EXPECTED) from None
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise InputError("not a tokenizer: it has no model", EXPECTED)
    _check_model(values["model"])
    _check_added(values.get("added_tokens") or [])
    count, growth = 0, dict.fromkeys(("normalizer", "pre_tokenizer", "decoder"), 1.0)
    for kind, names in COMPONENTS.items():
        for part in _parts(values.get(kind), kind):
            count += 1
            if part.get("type") not in names:
                raise InputError(f"tokenizer: {kind} {part.get('type')!r}", "expected one of " + ", ".join(names[:6]))
            if count > MAX_COMPONENTS:
                raise InputError(f"tokenizer with more than {MAX_COMPONENTS} parts", "expected fewer")
            if kind in growth:
                growth[kind] *= _growth(part)
            _check_pattern(part.get("pattern"))
            _check_template(part)
            if isinstance(table := part.get("precompiled_charsmap"), str):
                _charsmap(table)
    for kind, factor in growth.items():
        if factor > MAX_GROWTH:
            raise InputError(f"tokenizer whose {kind} lengthens texts too much", f"expected at most {MAX_GROWTH} times")
    return {**values, "padding": None, "truncation": None}


def _charsmap(table: Any) -> bytes:
    """SentencePiece's table of characters: base64 of a trie's length in 4 bytes, the trie, and replacements.

    Raises:
        InputError: it is cut off; the library reserves the length that it says.
    """
    try:
        raw = base64.b64decode(table, validate=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"tokenizer: precompiled_charsmap: {error}", "expected base64") from None
    if len(raw) < 4 or int.from_bytes(raw[:4], "little") > len(raw) - 4:
        raise InputError("tokenizer: precompiled_charsmap is cut off", "expected as many bytes as it says")
    return raw


def _check_model(model: dict[str, Any]) -> None:
    """Check the vocabulary: a map of tokens to ids or, for Unigram, a list of pairs of token and score."""
    kind = model.get("type", "BPE")
    if kind not in MODELS:
        raise InputError(f"tokenizer: model {kind!r}", "expected one of " + ", ".join(MODELS))
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, list if kind == "Unigram" else dict) or not 0 < len(vocabulary) <= MAX_TOKENS:
        size = len(vocabulary) if isinstance(vocabulary, (list, dict)) else "no"
        raise InputError(f"tokenizer with a vocabulary of {size} tokens", f"expected 1 to {MAX_TOKENS}")
    if isinstance(vocabulary, list):
        good = all(
            isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
            and isinstance(pair[1], (int, float)) and math.isfinite(pair[1]) for pair in vocabulary
        )  # fmt: skip
    else:
        good = all(type(i) is int and 0 <= i < 2 * MAX_TOKENS for i in vocabulary.values())
    if not good:
        raise InputError("tokenizer with a broken vocabulary", "expected text to ids, or to finite scores")
    _check_lengths(vocabulary if isinstance(vocabulary, dict) else (pair[0] for pair in vocabulary))
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if len(str(model.get(name) or "")) > MAX_AFFIX_CHARS:
            raise InputError(f"tokenizer: {name} is too long", f"expected at most {MAX_AFFIX_CHARS} characters")
    longest = model.get("max_input_chars_per_word", 0)
    if type(longest) is not int or longest > MAX_WORD_CHARS:
        raise InputError(f"tokenizer: words of {str(longest)[:20]} characters", f"expected at most {MAX_WORD_CHARS}")
    merges = model.get("merges", [])
    if not isinstance(merges, list) or len(merges) > 2 * MAX_TOKENS:
        raise InputError("tokenizer whose merges are not a list", f"expected at most {2 * MAX_TOKENS} pairs")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) for p in pair):
            raise InputError(f"tokenizer: merge {str(merge)[:40]!r}", "expected two tokens")


def _check_added(tokens: Any) -> None:
    if not isinstance(tokens, list) or len(tokens) > MAX_TOKENS:
        raise InputError("tokenizer whose added_tokens are not a list", EXPECTED)
    for token in tokens:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
            raise InputError(f"tokenizer: added token {str(token)[:40]!r}", "expected its content and id")
        if type(token.get("id")) is not int or not 0 <= token["id"] < 2 * MAX_TOKENS:
            raise InputError(f"tokenizer: added token {token['content'][:40]!r} has id {str(token.get('id'))[:20]}")
    _check_lengths(token["content"] for token in tokens)


def _check_lengths(tokens: Iterable[str]) -> None:
    if any(len(token) > MAX_TOKEN_CHARS for token in tokens):
        raise InputError("tokenizer with a token that is too long", f"expected at most {MAX_TOKEN_CHARS} characters")


def _check_template(part: dict[str, Any]) -> None:
    """Check what a post-processor puts around a text: a list of pieces, some of which stand for several ids."""
    if part["type"] != "TemplateProcessing":
        return
    listed = part.get("special_tokens")
    frames = [len(token.get("ids") or ()) for token in listed.values()] if isinstance(listed, dict) else []
    longest = max(frames, default=1)
    for name in ("single", "pair"):
        pieces = part.get(name)
        if isinstance(pieces, (list, str)) and len(pieces) * max(longest, 1) > MAX_FRAME_TOKENS:
            raise InputError("tokenizer whose template adds too much", f"expected at most {MAX_FRAME_TOKENS} tokens")


def _parts(part: Any, kind: str) -> Iterator[dict[str, Any]]:
    """`part` and, if it is a sequence, its members, recursively."""
    if part is None:
        return
    if not isinstance(part, dict):
        raise InputError(f"tokenizer: {kind} {str(part)[:40]!r}", "expected an object with its type")
    yield part
    inner = [part[key] for key in ("normalizers", "pretokenizers", "processors", "decoders") if key in part]
    for listed in inner:
        if not isinstance(listed, list):
            raise InputError(f"tokenizer: {kind} whose parts are not a list", EXPECTED)
        for one in listed:
            yield from _parts(one, kind)


def _growth(part: dict[str, Any]) -> float:
    """The factor by which a normalizer or a decoder can lengthen a text."""
    if part["type"] == "Precompiled":
        return _growth_of_charsmap(part.get("precompiled_charsmap"))
    if part["type"] == "ByteLevel":
        return 4.0  # a character of four bytes becomes four
    content = part.get("content", part.get("prepend", ""))
    if part["type"] not in ("Replace", "Prepend") or not isinstance(content, str):
        return 1.0
    pattern = part.get("pattern")
    found = pattern.get("String") if isinstance(pattern, dict) else None
    length = max(len(content.encode("utf-8", "replace")), len(_decomposed(content)))
    return max(1.0, length / max(len(found) if isinstance(found, str) else 1, 1))


def _growth_of_charsmap(table: Any) -> float:
    """The longest replacement in SentencePiece's table, in characters: it may stand for a single one.

    The replacements have a zero behind each.
    """
    if not table:
        return 1.0
    raw = _charsmap(table)
    replacements = raw[4 + int.from_bytes(raw[:4], "little") :].decode("utf-8", "replace")
    return max(1.0, *map(len, _decomposed(replacements).split("\0")))


def _decomposed(text: str) -> str:
    """What a later NFKD may make of `text`, up to 18 characters of each, so that growth counts Unicode's forms once."""
    return unicodedata.normalize("NFKD", text)


def _check_pattern(pattern: Any) -> None:
    """Refuse regular expressions that can take exponential time: nested repetition and back-references."""
    expression = pattern.get("Regex") if isinstance(pattern, dict) else None
    if expression is None:
        return
    if not isinstance(expression, str) or len(expression) > MAX_PATTERN_CHARS:
        raise InputError(
            "tokenizer with a bad regular expression",
            f"expected at most {MAX_PATTERN_CHARS} characters",
        )
    if re.search(r"\\[1-9kg]|\{\d{4,}|,\d{4,}\}", expression) or _repeats_repetition(expression):
        raise InputError(f"tokenizer: regular expression {expression[:40]!r}", "refused: it may take exponential time")


def _repeats_repetition(expression: str) -> bool:
    """Whether a repeated group contains a repetition or an alternative: ``(a+)+``, ``(a|a)*``, ``(a{1,9}){30}``.

    A fixed count within, as in ``(\\d{3})*``, is none: it leaves no choice.
    """
    plain = re.sub(r"\\.", "x", expression, flags=re.DOTALL)
    plain = re.sub(r"\[\^?\]?(?:\[:\^?\w+:\]|[^\]])*\]", "x", plain)
    repeats = re.compile(r"[*+]|\{\d*,\d*\}")
    outer = re.compile(r"[*+]|\{\d*,\d*\}|\{\d+\}")
    stack, inside = [], False  # for each open group, whether the enclosing one contains a repetition already
    i = 0
    while i < len(plain):
        if plain[i] == "(":
            stack.append(inside)
            inside = False
        elif plain[i] == ")" and stack:
            within = inside
            inside = stack.pop() or within
            if within and outer.match(plain, i + 1):
                return True
        elif (stack and plain[i] == "|") or repeats.match(plain, i):
            inside = True
        i += 1
    return False
