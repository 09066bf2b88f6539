"""Text from files as Markdown that shows it and interprets nothing in it."""

from __future__ import annotations

import html
import re

from bigmodel_cli.core.errors import printable

SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$@])")


def markdown(text: object) -> str:
    """`text` on one line: control characters, HTML and Markdown are shown as they are written."""
    return SPECIAL.sub(r"\\\1", html.escape(printable(str(text)), quote=False))


def code_span(text: object) -> str:
    """`text` on one line as code. The backticks around it are more than any in it (CommonMark 6.1)."""
    line = printable(str(text))
    marks = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") or not line.strip() else ""
    return f"{marks}{space}{line}{space}{marks}"


def code_block(text: str, language: str) -> str:
    """`text` as a fenced block that nothing in it can end."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
