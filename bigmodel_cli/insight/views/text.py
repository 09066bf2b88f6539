"""Texts on a page, decoded from their tokens."""

from __future__ import annotations

from html import escape
from typing import Any

from bigmodel_cli.core.registry import views
from bigmodel_cli.core.tokenizers.tokens import tokenizer
from bigmodel_cli.core.types import Batch

LONGEST = 400
"""Characters of a text on a page."""


@views.register()
def text(batch: Batch, spec: Any, stored: bytes | None = None) -> str:
    """The text of the tokens (1,T) of a raw batch."""
    tokens = batch["tokens" if "tokens" in batch else "source"][0]
    length = int(batch["length"][0]) + 1 if "length" in batch else len(tokens)
    found = tokenizer(spec).decode([int(i) for i in tokens[:length] if i >= 0])
    shown = found if len(found) <= LONGEST else found[:LONGEST] + " ..."
    return f"<blockquote>{escape(shown)}</blockquote>"
