"""Addresses without what they keep secret: a signed address's query and a user's password are never written or shown.

The recipe holds the public form; this process alone remembers the full one, and opens it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

SCHEME = (
    r"(?:[a-zA-Z][a-zA-Z0-9+.-]{1,15}://"
    r"|(?:https?|s3a?|gc?s|hf|az|abfss?|adl|s?ftp|ssh|(?:web)?hdfs|oci|oss):/(?=[^/]))"
)
"""With one slash, too: a ``Path`` of an address has lost the other."""
END = r"[^\s'\"<>`]"
USER = (
    r"(?:[^\s/:@'\"<>`]{0,256}:(?!\d+(?:[/?#'\"<>`\\]|$))[^\s@]{0,256}@(?:[^\s/?#@'\"<>`]{0,256}@)*"
    r"|[^\s/?#@'\"<>`]{0,256}@)?"
)
"""A user, and a password with whatever signs a user forgot to encode; ``host:80/`` is none."""
ADDRESS = re.compile(rf"\b({SCHEME}){USER}([^\s'\"<>`?#]*)(?:[?#]{END}*?([:;,.)\]]*)(?!{END}))?")
WHOLE = re.compile(rf"({SCHEME}){USER}([^?#]*).*", re.DOTALL)
_full: dict[str, str] = {}
"""Public address -> the address as the user gave it."""
_copies: dict[str, str] = {}
"""The path here of what is written at an address -> that public address."""


def public(address: str) -> str:
    """The address without user, password, query and fragment."""
    return WHOLE.sub(r"\1\2", address.strip())


def remember(value: Any) -> Any:
    """`value` with the address in it made public, whose full form :func:`full` then gives; others unchanged."""
    if isinstance(value, list | tuple):
        return type(value)(map(remember, value))
    text = value.strip() if isinstance(value, str) else ""
    if WHOLE.match(text) is None:
        return value
    if (shown := public(text)) == text:
        return value
    _full[shown] = text
    return shown


def full(address: str) -> str:
    """The address as the user gave it."""
    return _full.get(address, address)


def name_copy(copy: Path, address: str) -> None:
    """Have the path `copy`, and those below it, shown and written as the `address` that it is a copy of."""
    _copies[str(copy)] = address


def named(text: str) -> str:
    """`text` with the addresses that its paths are copies of."""
    for copy, address in _copies.items():
        text = text.replace(copy, address)
    return text


def scrub(text: str) -> str:
    """`text` with every address in it made public, and in place of the path of a copy the address of its original."""
    text = named(text)
    return ADDRESS.sub(r"\1\2\3", text) if ":/" in text else text
