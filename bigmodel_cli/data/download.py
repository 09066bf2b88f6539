"""Downloads over HTTPS with pinned checksums. Files appear atomically, and a missing network fails fast."""

from __future__ import annotations

import hashlib
import http.client
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from bigmodel_cli.core.addresses import full, public
from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.files import atomic_files

ATTEMPTS = 3
TIMEOUT = 8.0  # seconds to wait for a first byte, over all mirrors and attempts
BLOCK = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)

on_progress: list[Callable[[str, int, int | None], None]] = []
"""Callbacks (file name, bytes so far, total bytes or None); the console adds its progress bar here."""


def download(
    addresses: Sequence[str], path: Path, *, what: str, sha256: str, hint: str | None = None, most: int | None = None
) -> Path:
    """Download `path` from the first of `addresses` that responds. The file's SHA-256 must start with `sha256`.

    If set, ``BIGMODEL_MIRROR`` replaces the addresses: the URL of a folder with the same file names,
    over HTTPS, or plain HTTP on this machine. Files of more than `most` bytes are refused.

    Raises:
        MachineError: no address could be reached, none served the complete file with its
            checksum, or the folder is not writable.
        InputError: BIGMODEL_MIRROR is plain HTTP on another machine.
    """
    mirror = os.environ.get("BIGMODEL_MIRROR")
    candidates = [f"{mirror.rstrip('/')}/{path.name}"] if mirror else list(addresses)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot write {path.parent}: {error.strerror}", hint="--data-dir DIR") from None
    atomic_files.remove_dead_drafts(path)
    started, reasons = time.monotonic(), []
    for attempt in range(ATTEMPTS):
        for address in candidates:
            try:
                left = max(TIMEOUT - (time.monotonic() - started), 0.5)
                return _fetch(address, path, sha256, left, most)
            except (OSError, http.client.HTTPException) as error:
                reasons.append(f"{urlsplit(address).hostname}: {getattr(error, 'reason', error)}")
            if time.monotonic() - started > TIMEOUT:
                break
        else:
            time.sleep(0.2 * 2**attempt)
            continue
        break
    raise MachineError(
        f"cannot download {what}: {reasons[-1] if reasons else 'no address'}",
        hint=hint or f"--data-dir DIR with {path.name} in it, or --data digits, which needs no network",
    )


def reason_of(error: Exception) -> str:
    """Why a request failed. What the server said is not repeated: it may hold what it was asked with."""
    if isinstance(error, urllib.error.HTTPError):
        standard = http.client.responses.get(error.code, "no success")
        if str(error.msg).startswith(_SafeRedirects.inf_msg):
            return "it redirects without end"
        return "it redirects to no web address" if error.code in REDIRECTS else f"{error.code} {standard}"
    return "not an address" if isinstance(error, http.client.InvalidURL) else "no answer of a web server"


def _is_safe(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost"))


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect that leaves HTTPS: whoever answers in plain HTTP could send anything."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not _is_safe(newurl) or (urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https"):
            raise InputError(f"{public(req.full_url)}: redirects to {public(newurl)}: refused", "expected https")
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        if found is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            found.remove_header("Authorization")  # the password is for the first host
        return found


def _request(address: str) -> urllib.request.Request:
    """The request, with a user and password in the address as a header, since urllib does not read them.

    Raises:
        InputError: it is plain HTTP on another machine, or no address.
    """
    address = full(address)
    try:
        if not _is_safe(address):
            raise InputError(f"{public(address)}: refused", "expected https")
        parts = urlsplit(address)
        user, found, host = parts.netloc.rpartition("@")
        request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)))
    except ValueError:
        raise InputError(f"{public(address)}: not an address", "expected https://HOST/PATH") from None
    if found:
        request.add_header("Authorization", "Basic " + b64encode(unquote(user).encode()).decode())
    return request


def open_url(address: str, seconds: float) -> Any:
    """The open response, or OSError after `seconds`. Only HTTPS, or plain HTTP on this machine, also when redirected.

    The request runs in a thread: DNS lookup has no timeout, and urlopen's applies to each resolved address.

    Raises:
        InputError: the address, or one that it redirects to, is plain HTTP on another machine.
    """
    asked = _request(address)
    opener = urllib.request.build_opener(_SafeRedirects)
    results: queue.Queue[Any] = queue.Queue()

    def request() -> None:
        try:
            results.put(opener.open(asked, timeout=TIMEOUT))
        except (OSError, http.client.HTTPException, InputError) as error:
            results.put(error)
        except (ValueError, OverflowError):  # a host, a port or a redirection that is none
            results.put(http.client.InvalidURL())

    threading.Thread(target=request, name="download", daemon=True).start()
    try:
        result = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:.0f} s") from None
    if isinstance(result, urllib.error.HTTPError):
        result.msg = reason_of(result)
    elif isinstance(result, http.client.HTTPException) and not isinstance(result, OSError):
        result = ConnectionError(reason_of(result))
    if isinstance(result, Exception):
        raise result
    return result


def _length(reply: Any) -> int | None:
    """The bytes that the server says it sends."""
    length = reply.headers.get("Content-Length")
    return int(length) if length and length.isascii() and length.isdecimal() else None


def _fetch(address: str, path: Path, checksum: str, patience: float, most: int | None = None) -> Path:
    temporary = atomic_files.temporary_name(path)
    total = hashlib.sha256()
    try:
        with open_url(address, patience) as reply, temporary.open("xb") as file:
            expected, done = _length(reply), 0
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
            # Try the next mirror.
            raise ConnectionError(f"{path.name} has SHA-256 {total.hexdigest()}, expected {checksum}")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_url(address: str, most: int) -> bytes:
    """The content at `address`, of at most `most` bytes.

    Raises:
        MachineError: it cannot be reached.
        InputError: it is plain HTTP on another machine, or larger.
    """
    try:
        with open_url(address, TIMEOUT) as reply:
            found, expected = reply.read(most + 1), _length(reply)
            if expected is not None and len(found) < min(expected, most):
                raise ConnectionError(f"cut off at {len(found)} of {expected} bytes")
    except (OSError, http.client.HTTPException) as error:
        refused = isinstance(error, urllib.error.HTTPError) and error.code in (401, 403)
        hint = "--set data.path=ADDRESS with its signature or password: it is not stored" if refused else None
        raise MachineError(
            f"{public(address)}: {getattr(error, 'reason', error)}", hint=hint or "is the server up?"
        ) from None
    if len(found) > most:
        raise InputError(f"{address}: more than {most} bytes", "expected an index of shards")
    return bytes(found)
