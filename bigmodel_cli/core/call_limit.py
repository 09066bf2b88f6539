"""A bound on calls into foreign runtimes and compilers: native code that hangs cannot be interrupted from Python.

Where such calls are made in a child process (see ``commands/supervised.py``), a call that does not return in time ends
the child by SIGALRM, whatever it is doing; its parent says so and goes on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from bigmodel_cli.core.errors import InputError

VARIABLE = "BIGMODEL_RUNTIME_LIMIT"
SECONDS = 1800.0
"""The longest that one call may take, unless the variable says otherwise: compiling a large network takes minutes."""
_in_child = False


def call_limit() -> float:
    """The limit in seconds.

    Raises:
        InputError: the variable is no positive number.
    """
    text = os.environ.get(VARIABLE, str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e8:
        raise InputError(f"{VARIABLE}={text}", "expected seconds")
    return seconds


def bound_calls() -> None:
    """From now on :func:`bounded` ends this process. Only a supervised child may say so."""
    global _in_child
    _in_child = True


@contextmanager
def bounded() -> Iterator[None]:
    """A call into foreign code. In a supervised child it must return within :func:`call_limit`; calls may be nested."""
    if not _in_child or signal.getitimer(signal.ITIMER_REAL)[0] > 0:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, call_limit())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
