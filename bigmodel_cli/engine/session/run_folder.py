"""A run folder: a lock, a status file and an event log. It is created only when the run is built."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from bigmodel_cli.core import registry
from bigmodel_cli.core.addresses import scrub
from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.files.event_log import read_events, read_status
from bigmodel_cli.core.files.file_lock import try_lock
from bigmodel_cli.core.files.open_flags import NO_FOLLOW, NO_WAIT
from bigmodel_cli.core.files.owners import current_owner
from bigmodel_cli.core.types import finite
from bigmodel_cli.engine.session.loggers import Loggers

LOCK_TRIES, LOCK_WAIT = 10, 0.05
"""How often to retry the lock, and the seconds between retries, before the folder counts as in use."""
LONGEST_HOLDER = 1000
"""Characters of a lock that are read."""


class RunFolder:
    """The folder of one run, locked while the context is active.

    Args:
        out: the folder, or None for ``runs/<stem>-<n>`` with the next free n.
        stem: the name of a run without `out`.
        resume: continue the run in the folder.
        overwrite: replace a run in the folder, if there is one.
        loggers: additional destinations for events.
        jobs: identifiers of this job. If the folder holds a run of the same job, it is resumed automatically.

    Raises:
        InputError: the folder is not empty, and neither `resume` nor `overwrite` is set.
    """

    def __init__(
        self,
        out: Path | None,
        stem: str = "run",
        *,
        resume: bool = False,
        overwrite: bool = False,
        jobs: Sequence[str] = (),
        loggers: Loggers | None = None,
    ) -> None:
        self.out, self.stem, self.resume, self.overwrite = out, stem, resume, overwrite
        self.jobs, self.loggers = list(jobs), loggers or Loggers()
        self.path = Path("runs") if out is None else out
        if out is not None and self._same_job():
            self.resume = any(out.glob("*.pt"))
            self.overwrite = not self.resume
        self._lock: IO[str] | None = None
        self._events: IO[str] | None = None
        if out is not None:
            with self._writable():
                self._check()

    def _same_job(self) -> bool:
        """Whether the folder belongs to the same job, restarted by its launcher or scheduler."""
        before = read_status(self.path).get("jobs")
        return isinstance(before, list) and any(job in before for job in self.jobs)

    def _check(self) -> None:
        path = self.path
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file", "expected a folder for --out")
        if self.resume and not path.is_dir():
            raise InputError(
                f"{path}: no such run", "expected a run folder to resume", "bigmodel train MODEL --out ..."
            )
        if self.resume and not any(path.glob("*.pt")):
            raise InputError(f"{path}: no checkpoint to resume from", hint="start again with --overwrite")
        in_use = path.is_dir() and any(p.name != "run.lock" for p in path.iterdir())
        if in_use and not (self.resume or self.overwrite):
            holder = self._holder()
            if holder:
                raise MachineError(f"{path}: another run is writing here ({holder})", hint="give another --out")
            problem = f"{path}: the folder is not empty"
            raise InputError(
                problem, "expected a new one", f"--resume to continue, --overwrite to replace, or --out {path}-2"
            )

    def _holder(self) -> str | None:
        """Return the process that holds the lock, if any."""
        return holder_of(self.path)

    def __enter__(self) -> Self:
        try:
            with self._writable():
                if self.out is None:
                    self.path = self._next()
                self.path.mkdir(parents=True, exist_ok=True)
                self._take_lock()
                self._check()  # again, now that the lock excludes other writers
                atomic_files.remove_temporary_files(self.path, alone=True)
                if self.overwrite and not self.resume:
                    self._clear()
                self._events = atomic_files.open_own(self.path / "metrics.jsonl")
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._release()

    def _release(self) -> None:
        self.loggers.close()
        for file in (self._events, self._lock):  # closing releases the lock
            if file is not None:
                with contextlib.suppress(OSError):  # a full disk was already reported on write
                    file.close()

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        """Convert an OSError, such as no permission or a full disk, to a MachineError."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise MachineError(f"{self.path}: {reason}", "expected a writable folder") from None

    def make(self) -> Path:
        """Create and return the next free ``runs/<stem>-<n>``."""
        with self._writable():
            return self._next()

    def _next(self) -> Path:
        """Create ``runs/<stem>-<n>``. mkdir is atomic, so two runs never get the same folder."""
        runs = Path("runs")
        runs.mkdir(exist_ok=True)
        n = 1
        while True:
            try:
                (runs / f"{self.stem}-{n}").mkdir()
            except FileExistsError:
                n += 1
            else:
                return runs / f"{self.stem}-{n}"

    def _take_lock(self) -> None:
        file = atomic_files.open_own(self.path / "run.lock")
        # Retry: another process may hold the lock for a moment, just to check who owns it.
        # The delay also lets the owner write its name, which the error message shows.
        for last in (False,) * LOCK_TRIES + (True,):
            if try_lock(file):
                break
            if last:
                file.seek(0)
                holder = file.read().strip()
                file.close()
                problem = f"{self.path}: another run is writing here ({holder})"
                raise MachineError(problem, hint="wait for it, or give another --out")
            time.sleep(LOCK_WAIT)
        self._lock = file
        file.truncate(0)
        owner = current_owner()
        file.write(f"pid {owner.pid} on {socket.gethostname()}, boot {owner.boot}, started {owner.started}\n")
        file.flush()

    def _clear(self) -> None:
        """Remove the files that a run creates, and no others."""
        removable = {"recipe.yaml", "metrics.jsonl", "status.json", "last.pt", "best.pt", "report.html", "crash.log"}
        removable |= {name for found in registry.loggers.found.values() for name in found.meta.get("files", ())}
        for path in self.path.iterdir():
            if path.name in removable and path.is_dir():
                shutil.rmtree(path)
            elif path.name in removable:
                path.unlink()
        atomic_files.remove_sharded(self.path.glob(atomic_files.SHARDS_PREFIX + "*"))

    def status(self, state: str, exit_code: int | None, step: int, checkpoint: str | None, message: str) -> None:
        """Write the run's status. `state` is running, done, interrupted or failed; `exit_code` is the process's."""
        values: dict[str, Any] = {"state": state, "exit_code": exit_code, "step": step}
        values |= {"checkpoint": checkpoint, "message": message}
        if self.jobs:
            values["jobs"] = self.jobs
        self.write_text("status.json", json.dumps(values) + "\n")

    def event(self, event: dict[str, Any]) -> None:
        """Append one JSON object to ``metrics.jsonl``, and pass it to the loggers.

        Raises:
            MachineError: the disk is full.
        """
        assert self._events is not None
        self.loggers.open(self.path)
        line = scrub(json.dumps(finite(event))) + "\n"
        try:
            self._events.write(line)
        except OSError as error:
            problem = f"{self.path / 'metrics.jsonl'}: {error.strerror}; {len(line)} bytes needed"
            raise MachineError(
                f"{problem}, {atomic_files.free_bytes(self.path)} free", hint="give another --out"
            ) from None
        self.loggers.event(event)

    def rewind(self, epochs: int) -> None:
        """Drop the events after the first `epochs` epochs. The resumed run writes them again."""
        file = self.path / "metrics.jsonl"
        numbered = ((event, event.get("epoch")) for event in read_events(file) if event["event"] == "epoch")
        kept = [event for event, epoch in numbered if isinstance(epoch, int) and epoch <= epochs]
        self.loggers.close()  # they reopen with the remaining events
        assert self._events is not None
        self._events.close()
        self.write_text("metrics.jsonl", "".join(json.dumps(event) + "\n" for event in kept))
        with self._writable():
            self._events = atomic_files.open_own(file)

    def write_text(self, name: str, text: str) -> None:
        """Write a file atomically.

        Raises:
            MachineError: the disk is full.
        """
        atomic_files.write_text(self.path / name, scrub(text))


def holder_of(folder: Path) -> str | None:
    """The process that holds the lock of the run in `folder`, as the lock says it; None if nobody writes there.

    Asking takes no more than the right to read: the folder may be another user's. A shared lock needs no other, on NFS
    too, and two processes that ask at once do not take each other for the run.
    """
    try:
        descriptor = os.open(folder / "run.lock", os.O_RDONLY | NO_FOLLOW | NO_WAIT)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
        return None if try_lock(file, shared=True) else file.read(LONGEST_HOLDER).strip()


class ReadOnlyRunFolder(RunFolder):
    """The run folder as seen by all ranks but rank 0. Only rank 0 writes to it."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path, self.resume, self.loggers = path, resume, Loggers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def status(self, state: str, exit_code: int | None, step: int, checkpoint: str | None, message: str) -> None:
        pass

    def event(self, event: dict[str, Any]) -> None:
        pass

    def rewind(self, epochs: int) -> None:
        pass

    def write_text(self, name: str, text: str) -> None:
        pass
