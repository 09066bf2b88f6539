"""Signals become a flag that the loop polls: the step ends, a checkpoint is saved, then the run stops."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from bigmodel_cli.core.errors import InterruptedRun

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
NOTHING = "stopped before the first step: nothing to save"


class StopFlag:
    """While entered, SIGTERM, SIGINT and SIGUSR1 set ``signum``; a second SIGINT stops at once.

    As long as there is nothing to save (``at_once``), each of them stops at once.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.at_once = True
        self._old: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signum is not None

    def __enter__(self) -> Self:
        # Python allows handlers in the main thread alone; elsewhere the flag is simply never set.
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._old.items():
            # None: a handler that was not installed from Python, and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def gently(self) -> None:
        """From here on there is something to save: a signal is a request.

        Raises:
            InterruptedRun: one came before, while something swallowed the exception.
        """
        self.at_once = False
        if self.signum is not None:
            raise InterruptedRun(self.signum, NOTHING)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        twice = self.signum == signal.SIGINT and signum == signal.SIGINT
        self.signum = signum
        if self.at_once:
            raise InterruptedRun(signum, NOTHING)
        if twice:
            raise InterruptedRun(signum, "interrupted twice: stopped at once, nothing more was saved")
