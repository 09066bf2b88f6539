"""Where else a run's events go, beside metrics.jsonl: the registered loggers that were asked for."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import InterruptedRun, MachineError
from bigmodel_cli.core.registry import Entry, loggers

Event = Mapping[str, Any]


class Loggers:
    """The loggers `names`, opened with the first event. One that fails is named to `warn` and off from then on.

    Raises:
        InputError: there is no such logger.
        MachineError: its package is not installed.
    """

    def __init__(self, names: Iterable[str] = (), warn: Callable[[str], None] = lambda line: None) -> None:
        self._wanted = [loggers.get(name) for name in dict.fromkeys(names)]
        for entry in self._wanted:
            _check_installed(entry)
        self._warn = warn
        self._open: dict[str, Callable[[Event], None]] | None = None
        self._stack = ExitStack()

    def open(self, folder: Path) -> None:
        """Open what is not open, with the events in the folder's metrics.jsonl as what came before."""
        if self._open is not None:
            return
        self._open = {}
        history = _events(folder / "metrics.jsonl") if self._wanted else []
        for entry in self._wanted:
            with self._guarded(entry.name):
                self._open[entry.name] = self._stack.enter_context(entry(folder, history))

    def event(self, event: Event) -> None:
        for name, log in list((self._open or {}).items()):
            with self._guarded(name):
                log(event)

    def close(self) -> None:
        """Close all; the next event opens them again."""
        with self._guarded("loggers"):
            self._stack.close()
        self._open = None

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """What a logger raises, and its libraries raise what they like, ends that logger and not the run."""
        try:
            yield
        except InterruptedRun:
            raise
        except Exception as error:
            self._wanted = [entry for entry in self._wanted if entry.name != name]
            if self._open is not None:
                self._open.pop(name, None)
            self._warn(f"warning: --log {name} failed and is off from here: {type(error).__name__}: {error}")


def _check_installed(entry: Entry) -> None:
    missing = [package for package in entry.meta.get("needs", ()) if importlib.util.find_spec(package) is None]
    if missing:
        extra = entry.meta.get("extra")
        hint = f"pip install 'bigmodel[{extra}]'" if extra else f"pip install {' '.join(missing)}"
        raise MachineError(f"--log {entry.name} needs {missing[0]}, which is not installed", hint=hint)


def _events(file: Path) -> list[Event]:
    """The events in a run's metrics.jsonl; a line that a kill cut off is left out."""
    found: list[Event] = []
    with suppress(FileNotFoundError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    found.append(event)
    return found
