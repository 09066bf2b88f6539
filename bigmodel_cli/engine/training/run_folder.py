"""A run's folder: one writer at a time, a status, a log of events; made only when there is something to put in."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from bigmodel_cli.core import atomic_files, registry
from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.types import finite
from bigmodel_cli.engine.training.loggers import Loggers

LOCK_TRIES, LOCK_WAIT = 10, 0.05
"""How often, and at what distance in seconds, the lock is tried again before the folder counts as taken."""


class RunFolder:
    """The folder of one run, locked while entered.

    Args:
        out: the folder, or None for ``runs/<stem>-<n>`` with the next free n.
        stem: what an unnamed run is called.
        resume: the folder holds a run, which goes on.
        overwrite: the folder may hold a run, which is replaced.
        loggers: where the events go too.
        jobs: what the job that comes to write here is called: its own run in the folder goes on by itself.

    Raises:
        InputError: it holds a run and neither `resume` nor `overwrite` is given.
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
        """Whether the job that writes here was started again, by its launcher or scheduler."""
        try:
            status = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
            return bool(self.jobs) and not set(self.jobs).isdisjoint(status.get("jobs", ()))
        except (OSError, ValueError, AttributeError, TypeError):
            return False

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
        used = path.is_dir() and any(p.name != "run.lock" for p in path.iterdir())
        if used and not (self.resume or self.overwrite):
            holder = self._holder()
            if holder:
                raise MachineError(f"{path}: another run is writing here ({holder})", hint="give another --out")
            what = f"{path}: the folder is not empty"
            raise InputError(
                what, "expected a new one", f"--resume to go on, --overwrite to replace, or --out {path}-2"
            )

    def _holder(self) -> str | None:
        """Who holds the lock, where somebody does."""
        try:
            with (self.path / "run.lock").open("r+") as file:  # NFS locks only what may be written
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return file.read().strip()
        except FileNotFoundError:
            pass
        return None

    def __enter__(self) -> Self:
        try:
            with self._writable():
                if self.out is None:
                    self.path = self._next()
                self.path.mkdir(parents=True, exist_ok=True)
                self._take_lock()
                self._check()  # again, now that no other run can be writing here
                atomic_files.remove_temporary_files(self.path)
                if self.overwrite and not self.resume:
                    self._clear()
                self._events = (self.path / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._release()

    def _release(self) -> None:
        self.loggers.close()
        for file in (self._events, self._lock):  # closing lets the lock go
            if file is not None:
                with contextlib.suppress(OSError):  # a full disk: what could not be flushed was reported when written
                    file.close()

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        """An OSError inside, such as no permission or a full disk, as a MachineError."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise MachineError(f"{self.path}: {reason}", "expected a folder that can be written") from None

    def make(self) -> Path:
        """The next free ``runs/<stem>-<n>``, made."""
        with self._writable():
            return self._next()

    def _next(self) -> Path:
        """Make ``runs/<stem>-<n>``: mkdir is atomic, so two runs never share one."""
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
        file = (self.path / "run.lock").open("a+", encoding="utf-8")
        # Some tries: another start may hold it for a moment, only to see who else does;
        # and a winner needs one to write its name, which the losers then tell.
        for last in (False,) * LOCK_TRIES + (True,):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    file.seek(0)
                    holder = file.read().strip()
                    file.close()
                    what = f"{self.path}: another run is writing here ({holder})"
                    raise MachineError(what, hint="wait for it, or give another --out") from None
                time.sleep(LOCK_WAIT)
        self._lock = file
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()

    def _clear(self) -> None:
        """Remove the files that a run makes, and nothing else that may lie here."""
        ours = {"recipe.yaml", "metrics.jsonl", "status.json", "last.pt", "best.pt", "report.html", "crash.log"}
        ours |= {name for found in registry.loggers.found.values() for name in found.meta.get("files", ())}
        for path in self.path.iterdir():
            if path.name in ours and path.is_dir():
                shutil.rmtree(path)
            elif path.name in ours:
                path.unlink()
        atomic_files.remove_sharded(self.path.glob(atomic_files.SHARDS_PREFIX + "*"))

    def status(self, state: str, exit_code: int | None, step: int, checkpoint: str | None, message: str) -> None:
        """How the run is: state running, done, interrupted or failed, with the process's exit code."""
        values: dict[str, Any] = {"state": state, "exit_code": exit_code, "step": step}
        values |= {"checkpoint": checkpoint, "message": message}
        if self.jobs:
            values["jobs"] = self.jobs
        self.write_text("status.json", json.dumps(values) + "\n")

    def event(self, event: dict[str, Any]) -> None:
        """Append one JSON object to ``metrics.jsonl``, and tell the loggers.

        Raises:
            MachineError: the disk is full.
        """
        assert self._events is not None
        self.loggers.open(self.path)
        line = json.dumps(finite(event)) + "\n"
        try:
            self._events.write(line)
        except OSError as error:
            what = f"{self.path / 'metrics.jsonl'}: {error.strerror}; {len(line)} bytes needed"
            raise MachineError(
                f"{what}, {atomic_files.free_bytes(self.path)} free", hint="give another --out"
            ) from None
        self.loggers.event(event)

    def rewind(self, epochs: int) -> None:
        """Drop the events past the first `epochs`: the resumed run writes them again."""
        file = self.path / "metrics.jsonl"
        kept = []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                event = json.loads(line)
                if event["event"] == "epoch" and event["epoch"] <= epochs:
                    kept.append(line)
            except (ValueError, LookupError, TypeError):  # a line cut off by a kill, or not ours
                continue
        self.loggers.close()  # they open again with what is left
        assert self._events is not None
        self._events.close()
        self.write_text("metrics.jsonl", "".join(line + "\n" for line in kept))
        with self._writable():
            self._events = file.open("a", encoding="utf-8", buffering=1)

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole or not at all.

        Raises:
            MachineError: the disk is full.
        """
        # A name on disk need not be UTF-8, and a traceback or a recipe may hold one.
        raw = text.encode("utf-8", errors="backslashreplace")
        atomic_files.replace(self.path / name, lambda temporary: temporary.write_bytes(raw), lambda: len(raw))


class Followed(RunFolder):
    """The same folder as the processes see it that write nothing there: rank 0 alone does."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path, self.resume = path, resume

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
