"""Texts as token ids with what stands around them: the special tokens that a model's owners put there."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.core.conventions import Conventions
from bigmodel_cli.core.special_tokens import END, START
from bigmodel_cli.core.specs import TextSpec
from bigmodel_cli.core.tokenizers.bpe_tokenizer import span_bytes
from bigmodel_cli.core.tokenizers.tokens import BPETokenizer, encode_sized, target_tokenizer, tokenizer

NONE = Conventions()


def conventions(spec: TextSpec) -> Conventions:
    """Those of the spec; without any, none of its texts has anything around it."""
    return spec.conventions or NONE


def encode_beginning(text: str, spec: TextSpec) -> list[int]:
    """The ids of a text that a language model may continue, from its beginning-of-sequence token on, if it has one."""
    return [*conventions(spec).before, *tokenizer(spec).encode(text)]


def encode_continuation(text: str, spec: TextSpec) -> tuple[list[int], list[int]]:
    """The ids of a text that follows another one, and the bytes of text that each stands for."""
    known = tokenizer(spec)
    if isinstance(known, BPETokenizer):
        found = known.encode_spans(text, begins=False)
        return [token for token, _ in found], span_bytes(text, [span for _, span in found]).tolist()
    return encode_sized(known, text)


def encode_source(text: str, spec: TextSpec) -> list[int]:
    """The ids of a source for an encoder, at most the context."""
    known = conventions(spec)
    return _framed(list(tokenizer(spec).encode(known.prefix + text)), known.before, known.after, spec.context)


def source_is_cut(text: str, count: int, spec: TextSpec) -> bool:
    """Whether the `count` ids of :func:`encode_source` leave out some of `text`."""
    known = conventions(spec)
    return count == spec.context and _beyond(known.prefix + text, len(known.before) + len(known.after), spec)


def target_is_cut(text: str, count: int, spec: TextSpec) -> bool:
    """Whether the `count` ids of :func:`encode_target` leave out some of `text`."""
    known = spec.conventions
    around = 1 if known is None else len(known.target_before) + len(known.target_after)
    return count > spec.context and _beyond(text, around, spec)


def _beyond(text: str, around: int, spec: TextSpec) -> bool:
    return len(tokenizer(spec).encode(text)) + around > spec.context


def encode_target(text: str, spec: TextSpec) -> list[int]:
    """The ids of a target from the id that decoding starts with, at most one more than the context.

    A model without conventions frames it by its start and end tokens.
    """
    known = target_tokenizer(spec)
    after: Sequence[int] = (known.special[END],)
    before: Sequence[int] = ()
    if spec.conventions is not None:
        before, after = spec.conventions.target_before, spec.conventions.target_after
    return [known.special[START], *_framed(list(known.encode(text)), before, after, spec.context)]


def _framed(ids: list[int], before: Sequence[int], after: Sequence[int], most: int) -> list[int]:
    return [*before, *ids[: max(most - len(before) - len(after), 0)], *after][:most]
