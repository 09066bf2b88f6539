"""Send a run's events to the loggers that the user chose, in addition to metrics.jsonl."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from bigmodel_cli.core.addresses import scrub
from bigmodel_cli.core.errors import MachineError, service_reason
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.files.event_log import read_events
from bigmodel_cli.core.registry import Entry, loggers

Event = Mapping[str, Any]


class Loggers:
    """The loggers `names`, opened at the first event. A logger that fails is reported to `warn` and disabled.

    Raises:
        InputError: there is no such logger.
        MachineError: its package is not installed.
    """

    def __init__(self, names: Iterable[str] = (), warn: Callable[[str], None] = lambda line: None) -> None:
        self._enabled = [loggers.get(name) for name in dict.fromkeys(names)]
        for entry in self._enabled:
            _check_installed(entry)
        self._warn = warn
        self._open: dict[str, Callable[[Event], None]] | None = None
        self._stack = ExitStack()

    def open(self, folder: Path) -> None:
        """Open the loggers if they are closed. They receive the events in the folder's metrics.jsonl as history."""
        if self._open is not None:
            return
        self._open = {}
        file = folder / "metrics.jsonl"
        history = read_events(file) if self._enabled and file.is_file() else []
        for entry in self._enabled:
            with self._guarded(entry.name):
                self._open[entry.name] = self._stack.enter_context(entry(folder, history))

    def event(self, event: Event) -> None:
        for name, log in list((self._open or {}).items()):
            with self._guarded(name):
                log(event)

    @property
    def wants_samples(self) -> bool:
        """Whether an open logger shows pictures and texts."""
        return any(entry.meta.get("samples") for entry in self._enabled if entry.name in (self._open or {}))

    def samples(self, make: Callable[[], Event]) -> None:
        """Pass on the event of what the model makes of some samples, where a logger shows it."""
        if not self.wants_samples:
            return
        try:
            event = make()
        except Exception as error:  # such as too little memory: the run had enough without it
            reason = f"{type(error).__name__}: {scrub(str(error)).strip().partition(chr(10))[0][:300]}"
            self._warn(f"warning: the loggers get no samples of this epoch: {reason}")
            return
        for entry in list(self._enabled):
            log = (self._open or {}).get(entry.name)
            if log is not None and entry.meta.get("samples"):
                with self._guarded(entry.name):
                    log(event)

    def close(self) -> None:
        """Close all loggers. The next event opens them again."""
        with self._guarded("loggers"):
            self._stack.close()
        self._open = None

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Disable a logger that raises any exception, so that the run continues. What it prints goes to stderr."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except Exception as error:
            self._enabled = [entry for entry in self._enabled if entry.name != name]
            if self._open is not None:
                self._open.pop(name, None)
            self._warn(f"warning: --log {name} failed and is off from here: {service_reason(error)}")


def _check_installed(entry: Entry) -> None:
    missing = [package for package in entry.meta.get("needs", ()) if importlib.util.find_spec(package) is None]
    if missing:
        extra = entry.meta.get("extra")
        hint = install_line(extra) if extra else f"pip install {' '.join(missing)}"
        raise MachineError(f"--log {entry.name} needs {missing[0]}, which is not installed", hint=hint)
