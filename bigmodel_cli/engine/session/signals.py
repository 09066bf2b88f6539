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
    """While active, SIGTERM, SIGINT and SIGUSR1 set ``signum``. A second SIGINT stops at once.

    As long as there is nothing to save (``at_once``), any of these signals stops the run at once.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.at_once = True
        self._previous_handlers: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signum is not None

    def __enter__(self) -> Self:
        # Python allows signal handlers only in the main thread. In other threads the flag is never set.
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._previous_handlers.items():
            # None: the handler was not installed from Python and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def defer(self) -> None:
        """Defer signals from here on: they set the flag, and the loop saves before it stops.

        Raises:
            InterruptedRun: a signal came earlier, and its exception was swallowed.
        """
        self.at_once = False
        if self.signum is not None:
            raise InterruptedRun(self.signum, NOTHING)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        repeated = self.signum == signal.SIGINT and signum == signal.SIGINT
        self.signum = signum
        if self.at_once:
            raise InterruptedRun(signum, NOTHING)
        if repeated:
            raise InterruptedRun(signum, "interrupted twice: stopped at once, nothing more was saved")
