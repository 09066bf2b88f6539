"""``--out s3://bucket/run``: a command writes to a copy here, and what it writes is sent there as it changes.

The copy begins as what is there, so that a command resumes, replaces or refuses what it finds, as in a folder here. A
file is sent when it is whole: an object store shows it at once, and a checkpoint has checksums where one does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from bigmodel_cli.core.addresses import name_copy
from bigmodel_cli.core.errors import BigmodelError, MachineError
from bigmodel_cli.core.files import atomic_files, drafts
from bigmodel_cli.core.files.file_lock import try_lock
from bigmodel_cli.core.files.remote_files import as_public, cache_folder, check_copy, files_at, opened, state_of

SCAN_SECONDS = 5.0
"""Between looks for what has changed."""
NOT_SENT = {"run.lock"}
LAST = "status.json"
"""Sent after everything else, since it tells the state of the others."""
CONTENT = ("ETag", "etag", "md5Hash", "crc32c", "blob_id")
"""What services call a hash of a file's content, or what stands for it."""


@contextlib.contextmanager
def written_copy(text: str, say: Callable[[str], None], *, sends: bool = True) -> Iterator[Path]:
    """The copy of the file or folder at the address `text`, which is sent there while the context is active.

    Args:
        say: shows a warning.
        sends: False in a process whose parent sends: it only needs to know the place.

    Raises:
        InputError: what is there is too large.
        MachineError: the service is not reached, another process writes there, or something could not be sent in the
            end; it is still in the copy.
    """
    address, system, root = opened(text)
    place = cache_folder("written") / hashlib.sha256(address.encode()).hexdigest()[:16]
    copy = place / (PurePosixPath(root.rstrip("/")).name or "root")
    name_copy(copy, address)
    if not sends:
        yield copy
        return
    place.mkdir(parents=True, exist_ok=True)
    with atomic_files.open_own(place / "lock") as lock:
        if not try_lock(lock):
            raise MachineError(f"{address}: another process is writing to it", hint="wait for it, or another --out")
        mirror = _Mirror(address, system, root, copy, say)
        with as_public(address):
            mirror.fetch()
        try:
            with mirror:
                yield copy
        except BaseException:
            try:
                mirror.finish()
            except BigmodelError as problem:  # that of the command is the one to report
                say(f"warning: {problem.line}; {problem.hint}")
            raise
        mirror.finish()


class _Mirror:
    """Keeps the files at an address as those of `copy`. What was sent, and what it was then called, is remembered."""

    def __init__(self, address: str, system: Any, root: str, copy: Path, say: Callable[[str], None]) -> None:
        self.address, self.system, self.root, self.copy, self.say = address, system, root.rstrip("/"), copy, say
        self.record, self.ended, self.warned = copy.parent / "sent.json", threading.Event(), False
        self.sent: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            self.sent = json.loads(self.record.read_text(encoding="utf-8"))

    def fetch(self) -> None:
        """Bring the copy to what is there; where nobody else has written since, what was not sent yet is kept."""
        self.system.invalidate_cache()
        try:
            there = files_at(self.system, self.root)
        except FileNotFoundError:
            there = {}
        content = {name: self._content(name) for name in there}
        before = {name: state for name, (_, state) in self.sent.items()}
        if before != content and (before or there):
            self._make_room()
            self.sent = {}
        for name, info in there.items():
            path = self._here(name)
            if name in self.sent and path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            self.system.get_file(info["name"], str(path))
            check_copy(self.address, name, info, path)
            self.sent[name] = [_stamp(path), content[name]]
        for path in self.copy.glob("*.pt"):
            if path.is_dir() and not path.is_symlink():  # a checkpoint in parts, to which a run keeps a link
                parts = path.rename(path.with_name(atomic_files.SHARDS_PREFIX + uuid.uuid4().hex[:12]))
                atomic_files.symlink(path, parts)
        self._remember()

    def _make_room(self) -> None:
        """Remove the copy, since somebody else has written there; if some of it was never sent, keep it beside."""
        unsent = [name for name, path in self._files().items() if self.sent.get(name, [None])[0] != _stamp(path)]
        if not unsent:
            drafts.remove_own(self.copy)
            return
        kept = self.copy.with_name(f"unsent-{uuid.uuid4().hex[:12]}")
        self.copy.rename(kept)
        names = ", ".join(sorted(unsent)[:3])
        what = f"{self.address}: another process has written there since {names} could not be sent"
        self.say(f"warning: {what}; all that was here is kept in {kept}")

    def watch(self) -> None:
        """Send what changes until the command ends. What fails is said once and tried again."""
        while not self.ended.wait(SCAN_SECONDS):
            try:
                with as_public(self.address):
                    self._send()
            except BigmodelError as problem:
                if not self.warned:
                    self.say(f"warning: {problem.line}; it is tried again until the end")
                self.warned = True

    def __enter__(self) -> None:
        self.thread = threading.Thread(target=self.watch, daemon=True, name="sending")
        self.thread.start()

    def __exit__(self, *how: object) -> None:
        """End :meth:`watch`, after the file that it is sending."""
        self.ended.set()
        self.thread.join()

    def finish(self) -> None:
        """Send the rest.

        Raises:
            MachineError: something could not be sent.
        """
        try:
            with as_public(self.address):
                self._send()
        except BigmodelError as problem:
            what = f"not all was sent: {problem.what}"
            place = f"{os.fspath(self.copy.parent)}{os.sep}"
            hint = f"it is whole in {place}; --resume sends it, unless somebody else wrote there"
            raise MachineError(what, problem.expected, hint) from None

    def _send(self) -> None:
        here = self._files()
        for name in sorted(here, key=lambda name: (name == LAST, name)):
            path, before = self._here(name), self.sent.get(name)
            try:
                stamp = _stamp(path)
                if before is not None and before[0] == stamp:
                    continue
                self._refuse_another_writer(name, before)
                self.system.makedirs(self._there(name).rpartition("/")[0], exist_ok=True)
                self.system.put_file(str(path), self._there(name))
            except FileNotFoundError:
                if path.exists():
                    raise
                continue  # replaced or removed since
            self.sent[name] = [stamp, self._content(name)]
            self._remember()
        gone = [name for name in self.sent if name not in here] if here else []
        for name in gone:
            with contextlib.suppress(FileNotFoundError):
                self.system.rm_file(self._there(name))
            del self.sent[name]
            self._remember()

    def _refuse_another_writer(self, name: str, before: list[Any] | None) -> None:
        """Require that the file there is the one that was last sent."""
        try:
            found = self._content(name)
        except FileNotFoundError:
            return
        if before is None or found != before[1]:
            raise MachineError(f"{self.address}/{name}: another process has written it", "expected one writer")

    def _content(self, name: str) -> str:
        """What changes when a file there does. A listing may tell it in other words, so it is not asked."""
        self.system.invalidate_cache()
        info = self.system.info(self._there(name))
        known = [str(info[key]) for key in CONTENT if info.get(key)]
        return repr([int(info.get("size") or 0), known[0]]) if known else state_of(info)

    def _files(self) -> dict[str, Path]:
        """What is in the copy by its name there; the folder that a link is to has its files under both names."""
        if self.copy.is_file():
            return {"": self.copy}
        found = {}
        for folder, folders, files in os.walk(self.copy, followlinks=True):
            folders[:] = [name for name in folders if not drafts.is_temporary(Path(name))]
            for file in files:
                path = Path(folder, file)
                if not drafts.is_temporary(path) and file not in NOT_SENT:
                    found[path.relative_to(self.copy).as_posix()] = path
        return found

    def _here(self, name: str) -> Path:
        return self.copy / name if name else self.copy

    def _there(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def _remember(self) -> None:
        atomic_files.write_text(self.record, json.dumps(self.sent))


def _stamp(path: Path) -> list[int]:
    """What changes when a file here is replaced or written to."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
