"""Messages of a conversation, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigmodel_cli.core.readers.json_lines import text_problem

ROLES = ("system", "user", "assistant")
Message = Mapping[str, str]


def conversation_problem(value: Any) -> str | None:
    """What is wrong with a conversation to train on, or None. It needs at least one message by the assistant."""
    wrong = messages_problem(value)
    if wrong is None and not any(message["role"] == "assistant" for message in value):
        wrong = "have no turn of the assistant to train on"
    return wrong


def messages_problem(value: Any) -> str | None:
    """What is wrong with a list of ``{"role": ..., "content": ...}``, or None."""
    if not isinstance(value, list) or not value:
        return "are not a list of messages"
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return f"[{i}] lacks role or content"
        if message["role"] not in ROLES:
            return f"[{i}] has role {str(message['role'])[:40]!r}, expected one of {', '.join(ROLES)}"
        wrong = text_problem(message["content"]) if isinstance(message["content"], str) else "is not text"
        if wrong:
            return f"[{i}]: content {wrong}"
    return None
