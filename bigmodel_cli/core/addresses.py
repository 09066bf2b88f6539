"""Addresses without what they keep secret: a signed address's query and a user's password are never written or shown.

The recipe holds the public form; this process alone remembers the full one, and opens it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

ADDRESS = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]{1,15}://[^\s'\"<>`]+")
_full: dict[str, str] = {}
"""Public address -> the address as the user gave it."""
_copies: dict[str, str] = {}
"""The path here of what is written at an address -> that public address."""


def public(address: str) -> str:
    """The address without user, password, query and fragment."""
    try:
        parts = urlsplit(address)
    except ValueError:  # such as an unfinished [IPv6] host
        return re.split(r"[?#]", address, maxsplit=1)[0].partition("@")[0]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def remember(value: Any) -> Any:
    """`value` with the address in it made public, whose full form :func:`full` then gives; others unchanged."""
    if not isinstance(value, str) or ADDRESS.fullmatch(value) is None:
        return value
    shown = public(value)
    if shown != value:
        _full[shown] = value
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
    return ADDRESS.sub(lambda found: public(found[0]), text) if "://" in text else text
