"""Silence tracers and exporters, which log their stages and print whole graphs when they fail."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress all logging, warnings and prints inside; errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    hidden = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(hidden), contextlib.redirect_stderr(hidden):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
