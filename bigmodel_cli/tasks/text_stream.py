"""Turns generated tokens into pieces of text as they come."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.core.tokenizers.tokens import Tokenizer

TAIL = 8  # tokens of the prompt that are decoded with the first new ones


class TextStream:
    """The text that tokens add to the end of `prompt`, which may be empty.

    A token's text can depend on those before it: decoding a piece alone loses the blank at its start with
    SentencePiece, and a character may need several tokens. So each is decoded with its neighbours.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self.tokenizer, self.ids = tokenizer, list(prompt[-TAIL:])
        self.start, self.shown = 0, len(self.ids)

    def add(self, token: int) -> str:
        """The text of one more token; empty as long as it has no whole character."""
        self.ids.append(token)
        before = self.tokenizer.decode(self.ids[self.start : self.shown])
        text = self.tokenizer.decode(self.ids[self.start :])
        if len(text) <= len(before) or text.endswith("\ufffd"):
            return ""
        self.start, self.shown = self.shown, len(self.ids)
        return text[len(before) :]
