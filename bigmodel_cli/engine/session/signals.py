"""Signals become a flag that the loop polls: the step ends, a checkpoint is saved, then the run stops."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from bigmodel_cli.core.errors import InterruptedRun
from bigmodel_cli.core.processes.stop_signals import LOST_TERMINAL, SIGPIPE, STOP_SIGNALS

NOTHING = "stopped before the first step: nothing to save"


class StopFlag:
    """While active, the STOP_SIGNALS set ``signum``; SIGHUP is a lost terminal. A second SIGINT stops at once.

    A signal that the process was started to ignore, as by ``nohup``, stays ignored.

    As long as there is nothing to save (``at_once``), any of these signals stops the run at once.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.at_once = True
        self._reader_is_gone = False
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    @property
    def requested(self) -> bool:
        return self.signum is not None

    def __enter__(self) -> Self:
        # Python allows signal handlers only in the main thread. In other threads the flag is never set.
        if threading.current_thread() is threading.main_thread():
            heeded = [s for s in STOP_SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
            self._previous_handlers = {s: signal.signal(s, self._handle) for s in heeded}
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

    def at_closed_pipe(self, emit: Callable[[Any], None]) -> Callable[[Any], None]:
        """`emit`; where the reader of our output has gone, that is a SIGPIPE, which saves as the other signals do.

        ``bigmodel train | tee log`` in a window that is closed loses its reader a moment before it is told.
        """

        def guarded(event: Any) -> None:
            if not self._reader_is_gone:
                try:
                    emit(event)
                except BrokenPipeError:
                    self._reader_is_gone = True
                    self.signum = self.signum or SIGPIPE
                    if self.at_once:
                        raise InterruptedRun(SIGPIPE, NOTHING) from None

        return guarded

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == LOST_TERMINAL:
            self._drop_lost_terminal()
        repeated = self.signum == signal.SIGINT and signum == signal.SIGINT
        self.signum = signum
        if self.at_once:
            raise InterruptedRun(signum, NOTHING)
        if repeated:
            raise InterruptedRun(signum, "interrupted twice: stopped at once, nothing more was saved")

    def _drop_lost_terminal(self) -> None:
        """Write nowhere from here on if the terminal is gone: a write would fail before the checkpoint is saved."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):  # it was one
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
