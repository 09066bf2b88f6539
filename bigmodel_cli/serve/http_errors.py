"""HTTP error responses of the service: a status and one line, never a traceback."""

from __future__ import annotations

import json
from typing import Any

from bigmodel_cli.core.errors import BigmodelError, printable


class HttpRefusal(BigmodelError):
    """A response with a status of 400 or more.

    Args:
        status: the HTTP status code.
        what, expected, hint: as for every error.
        close: close the connection, because the bytes that follow may not be a request.
    """

    def __init__(
        self, status: int, what: str, expected: str | None = None, hint: str | None = None, close: bool = False
    ) -> None:
        super().__init__(what, expected, hint)
        self.status, self.close = status, close

    def body(self) -> bytes:
        """One line of JSON."""
        error = {"error": self.line}
        return line(error | ({"hint": printable(self.hint)} if self.hint else {}))

    def headers(self) -> dict[str, str]:
        retry = {"retry-after": "1"} if self.status == 503 else {}
        return retry | ({"connection": "close"} if self.close else {})


def line(value: Any) -> bytes:
    """`value` as one line of JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
