"""Conversations as tokens: by the prefixes of roles, or by the chat template that was published with the model."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.core.chat import template as chat_template
from bigmodel_cli.core.chat.conversation import MaskedTokens, encode_conversation
from bigmodel_cli.core.messages import Message
from bigmodel_cli.core.specs import TextSpec
from bigmodel_cli.core.tokenizers.tokens import BPETokenizer, tokenizer


def has_template(spec: TextSpec) -> bool:
    """Whether the model has a chat template: prefixes of roles, or one published with it."""
    return bool(spec.chat or (spec.conventions and spec.conventions.template))


def encode_chat(messages: Sequence[Message], spec: TextSpec, answer: bool = False) -> MaskedTokens:
    """:func:`encode_conversation` with the template of `spec`, whose prefixes overrule a published template.

    Raises:
        ValueError: the template refuses the conversation.
        InputError: the vocabulary lacks one of its characters.
    """
    known = tokenizer(spec)
    if spec.chat or spec.conventions is None or not isinstance(known, BPETokenizer):
        return encode_conversation(messages, spec.chat, known, answer)
    return chat_template.encode(messages, spec.conventions, known, answer)
