"""A bound on calls into foreign runtimes and compilers: native code that hangs cannot be interrupted from Python.

Where such calls are made in a child process (see ``commands/isolation/supervised.py``), a call that does not return in
time ends the child by SIGALRM, whatever it is doing; its parent says so and goes on. A server says so itself, from a
thread, and ends; only where native code keeps Python's lock, too, does SIGALRM end it a little later without a word.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bigmodel_cli.core.errors import InputError, MachineError

VARIABLE = "BIGMODEL_RUNTIME_LIMIT"
SECONDS = 1800.0
"""The longest that one call may take, unless the variable says otherwise: compiling a large network takes minutes."""
GRACE = 2.0  # seconds that the thread of a server has to say it
_in_child = False
_grace = 0.0
_deadline: float | None = None


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


def bound_calls_of_server(say: Callable[[MachineError], None]) -> None:
    """As :func:`bound_calls`, for a process without a parent that reports its end: `say` does, then it exits.

    Raises:
        InputError: see :func:`call_limit`.
    """
    global _grace
    if sys.platform == "win32":
        return
    limit = call_limit()
    _grace = GRACE
    bound_calls()

    def watch() -> None:
        while True:
            time.sleep(min(1.0, limit / 4))
            if _deadline is not None and time.monotonic() > _deadline:
                what = f"a call into the runtime took more than {limit:g} s"
                say(MachineError(what, "a fault in the runtime", f"start again; ${VARIABLE} is the limit"))
                os._exit(MachineError.exit_code)

    threading.Thread(target=watch, name="runtime limit", daemon=True).start()


@contextmanager
def bounded() -> Iterator[None]:
    """A call into foreign code. Where calls are bound it must return within :func:`call_limit`; it may be nested."""
    global _deadline
    if not _in_child or signal.getitimer(signal.ITIMER_REAL)[0] > 0:
        yield
        return
    limit = call_limit()
    signal.setitimer(signal.ITIMER_REAL, limit + _grace)
    _deadline = time.monotonic() + limit
    try:
        yield
    finally:
        _deadline = None
        signal.setitimer(signal.ITIMER_REAL, 0)
