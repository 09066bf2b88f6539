"""Runs a command in a child process, because foreign runtimes and compilers can end their process.

OpenVINO, onnxruntime, nncf and compilers are native code: a fault in them is a signal that no ``except`` sees. The
parent outlives it, says what died, and removes what the child has left. It forks before torch or any runtime is
imported, so that no thread is lost in the fork and nothing is loaded twice.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import typer

from bigmodel_cli.core.errors import BigmodelError, InterruptedRun
from bigmodel_cli.core.processes.call_limit import bound_calls, call_limit
from bigmodel_cli.core.processes.stop_signals import STOP_SIGNALS, signal_name

Death = Callable[[Mapping[str, Any], int, str], BigmodelError | None]
"""(the command's arguments, the child's process id, its signal) -> the error to report, or None to try again."""
PARENT_DEATH_SIGNAL = 1  # linux/prctl.h
OWN_PROCESS = False
"""Whether this process is the command line's own: in a notebook, say, the fork would go on with the notebook too."""
FORWARDED = STOP_SIGNALS


def supervised(
    command: Callable[..., None], died: Death, when: Callable[[Mapping[str, Any]], bool] | None = None
) -> Callable[..., None]:
    """`command`, run in a child if `when` holds of its arguments, or always without it.

    Where a fork is not safe or not possible it runs in this process.
    """

    @functools.wraps(command)
    def run(**given: Any) -> None:
        if sys.platform != "linux" or not OWN_PROCESS or (when is not None and not when(given)):
            command(**given)
            return
        call_limit()  # refuses a wrong one before the work
        while (child := _fork()) != 0:
            code = _wait(child)
            if code >= 0:
                raise typer.Exit(code)
            if -code in FORWARDED:
                raise InterruptedRun(-code, "interrupted")
            late = f": a call into it took more than {call_limit():g} s" if -code == signal.SIGALRM else ""
            error = died(given, child, signal_name(-code) + late)
            if error is not None:
                raise error
        bound_calls()
        command(**given)

    return run


def _fork() -> int:
    """As ``os.fork``; the child is killed when its parent dies. In the parent, signals are blocked."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent, before = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it died before prctl
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return child


def _wait(child: int) -> int:
    """The exit code of `child`, negative for a signal.

    Ctrl-C reaches the child itself, since it is in the same process group; what another process sends to this one is
    passed on, and so is the loss of a terminal, of which only the first process of its session hears.
    """
    try:
        while True:
            found = signal.sigwaitinfo({*FORWARDED, signal.SIGCHLD})
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            sent = found.si_code <= 0 or found.si_signo == signal.SIGHUP  # not by the terminal to all of the group
            if found.si_signo != signal.SIGCHLD and sent:
                os.kill(child, found.si_signo)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*FORWARDED, signal.SIGCHLD})
