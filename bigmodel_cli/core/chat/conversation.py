"""Tokenizes conversations: the chat template, and which tokens contribute to the loss.

A turn of the system or the user is its role's prefix, the content and a newline. A turn of the assistant is
its prefix, the content and the tokenizer's ``<end>`` (a newline if it has none). Prefix and content are
tokenized separately, so that a conversation has the same tokens in training and in a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bigmodel_cli.core.messages import ROLES, Message

if TYPE_CHECKING:
    from bigmodel_cli.core.tokenizers.tokens import Tokenizer

PREFIXES = ("<|system|>\n", "<|user|>\n", "<|assistant|>\n")


class MaskedTokens(NamedTuple):
    """Tokens; for each whether it contributes to the loss, and the bytes of text that it stands for."""

    ids: list[int]
    learn: list[bool]
    sizes: list[int]


def encode_conversation(
    messages: Sequence[Message], prefixes: Sequence[str], tokenizer: Tokenizer, answer: bool = False
) -> MaskedTokens:
    """The tokens of a conversation; with `answer`, followed by the prefix of the assistant's next turn.

    Raises:
        ValueError: the content of a message contains a prefix, which would begin a turn of another role.
        InputError: the vocabulary lacks one of its characters.
    """
    from bigmodel_cli.core.special_tokens import END
    from bigmodel_cli.core.tokenizers.tokens import encode_sized

    ids: list[int] = []
    loss_mask: list[bool] = []
    bytes_of: list[int] = []

    def add(tokens: Sequence[int], train: bool, sizes: Sequence[int] = ()) -> None:
        ids.extend(tokens)
        loss_mask.extend([train] * len(tokens))
        bytes_of.extend(sizes or [0] * len(tokens))

    newline = tokenizer.encode("\n")
    end = [tokenizer.special[END]] if END in tokenizer.special else newline
    for message in messages:
        content, answers = message["content"], message["role"] == "assistant"
        for prefix in prefixes:
            if prefix.strip() in content:
                raise ValueError(f"the content of a message contains {prefix.strip()!r}, which begins a turn")
        add(tokenizer.encode(prefixes[ROLES.index(message["role"])]), False)
        tokens, sizes = encode_sized(tokenizer, content)
        add(tokens, answers, sizes)
        add(end if answers else newline, answers)
    if answer:
        add(tokenizer.encode(prefixes[-1]), False)
    return MaskedTokens(ids, loss_mask, bytes_of)
