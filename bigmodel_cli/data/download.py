"""Downloads: HTTPS, a pinned checksum, a file that is whole or not there, and a quick no without a network."""

from __future__ import annotations

import hashlib
import http.client
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bigmodel_cli.core.errors import InputError, MachineError

ATTEMPTS = 3
PATIENCE = 8.0  # seconds without a first byte until we give up, over all mirrors and attempts
BLOCK = 1 << 16

on_progress: list[Callable[[str, int, int | None], None]] = []
"""Listeners, called with (file name, bytes so far, bytes in all or None): the console adds its bar here."""


def download(
    addresses: Sequence[str], path: Path, *, what: str, sha256: str, hint: str | None = None, most: int | None = None
) -> Path:
    """Fetch the first of `addresses` that answers into `path`, which appears only when its SHA-256 begins so.

    ``BIGMODEL_MIRROR`` is asked first where it is set: a folder with the same file
    names, which may be on the local network (plain HTTP from 127.0.0.1 alone). A file of more than
    `most` bytes is not fetched.

    Raises:
        MachineError: no address could be reached, none gave the whole file with its
            checksum, or the folder cannot be written.
        InputError: BIGMODEL_MIRROR is plain HTTP elsewhere.
    """
    mirror = os.environ.get("BIGMODEL_MIRROR")
    candidates = [f"{mirror.rstrip('/')}/{path.name}"] if mirror else [a for a in addresses if _is_safe(a)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot write {path.parent}: {error.strerror}", hint="--data-dir DIR") from None
    started, reasons = time.monotonic(), []
    for attempt in range(ATTEMPTS):
        for address in candidates:
            try:
                left = max(PATIENCE - (time.monotonic() - started), 0.5)
                return _fetch(_allowed(address), path, sha256, left, most)
            except (OSError, http.client.HTTPException) as error:
                reasons.append(f"{urlsplit(address).hostname}: {getattr(error, 'reason', error)}")
            if time.monotonic() - started > PATIENCE:
                break
        else:
            time.sleep(0.2 * 2**attempt)
            continue
        break
    raise MachineError(
        f"cannot download {what}: {reasons[-1] if reasons else 'no address'}",
        hint=hint or f"--data-dir DIR with {path.name} in it, or --data digits, which needs no network",
    )


def _is_safe(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost"))


def _allowed(address: str) -> str:
    if not _is_safe(address):
        raise InputError(f"{address}: refused", "expected https")
    return address


def answer(address: str, seconds: float) -> Any:
    """The open response, or OSError after `seconds`.

    A thread asks: looking up a name has no timeout, and each of its addresses gets its own.
    """
    answers: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(address, timeout=PATIENCE))
        except (OSError, http.client.HTTPException) as error:
            answers.put(error)

    threading.Thread(target=ask, name="download", daemon=True).start()
    try:
        found = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:.0f} s") from None
    if isinstance(found, Exception):
        raise found
    return found


def _fetch(address: str, path: Path, checksum: str, patience: float, most: int | None = None) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    total = hashlib.sha256()
    try:
        with answer(address, patience) as reply, temporary.open("wb") as file:
            length = reply.headers.get("Content-Length")
            expected, done = int(length) if length else None, 0
            while block := reply.read(BLOCK):
                file.write(block)
                total.update(block)
                done += len(block)
                if most is not None and done > most:
                    raise ConnectionError(f"{path.name} is more than {most} bytes")
                for listener in on_progress:
                    listener(path.name, done, expected)
            if expected is not None and done != expected:
                raise ConnectionError(f"cut off at {done} of {expected} bytes")
            file.flush()
            os.fsync(file.fileno())
        if not total.hexdigest().startswith(checksum):
            # The next mirror's turn.
            raise ConnectionError(f"{path.name} has SHA-256 {total.hexdigest()}, expected {checksum}")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_address(address: str, most: int) -> bytes:
    """What is at `address`, at most so many bytes.

    Raises:
        MachineError: it cannot be reached.
        InputError: it is plain HTTP elsewhere than on this machine, or larger.
    """
    try:
        with answer(_allowed(address), PATIENCE) as reply:
            found = reply.read(most + 1)
    except (OSError, http.client.HTTPException) as error:
        raise MachineError(f"{address}: {getattr(error, 'reason', error)}", hint="is the server up?") from None
    if len(found) > most:
        raise InputError(f"{address}: more than {most} bytes", "expected an index of shards")
    return bytes(found)
