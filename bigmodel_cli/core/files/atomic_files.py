"""Atomic, durable files: complete or absent, even if the process, the disk or the machine fails.

    .<name>.<owner>-<8 random digits>.tmp    a draft, which becomes the file by a rename

A draft names its process (see ``owners.py``). What a killed one left is removed when the file is written again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.files.open_flags import BINARY, NO_FOLLOW, NO_WAIT, NOT_INHERITED
from bigmodel_cli.core.files.owners import TOKEN, Owner, current_owner, is_another_users, stays

SHARDS_PREFIX = "parts-"
RENAME_WAITS = (0.01, 0.05, 0.2, 0.5, 1.0)  # seconds between tries
TEMPORARY = re.compile(rf"\.(.+)\.({TOKEN}|\d+)(?:-[0-9a-f]{{8}})?\.tmp", re.DOTALL)
"""A draft: the beginning of its file's name, and its owner; earlier versions wrote a process id."""
LONGEST_NAME = 40
"""Characters of a file's name that its draft keeps: names have at most 255 bytes."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a full disk says, and a quota."""


def link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, atomically: no second copy on the disk.

    Raises:
        MachineError: the disk is full or cannot be written.
    """

    if source.is_dir():
        symlink(target, source.resolve())
        return

    def write(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)

    replace(target, write, lambda: source.stat().st_size)


def symlink(target: Path, folder: Path) -> None:
    """Make `target` a symbolic link to its sibling `folder`, atomically.

    Raises:
        MachineError: the disk is full or cannot be written.
    """

    def write(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder.name, target_is_directory=True)

    replace(target, write, lambda: 1)


def remove_sharded(found: Iterable[Path], keep: Iterable[Path] = ()) -> None:
    """Remove the sharded checkpoints in `found` that no link in `keep` points to."""
    kept = {path.resolve() for path in keep}
    for path in found:
        if path.is_dir() and not path.is_symlink() and path.resolve() not in kept:
            shutil.rmtree(path, ignore_errors=True)


def replace(path: Path, write: Callable[[Path], object], needed: Callable[[], int]) -> None:
    """Call `write` with a temporary path, then rename that file to `path`, durably.

    `needed` gives bytes for the error message.

    Raises:
        MachineError: the disk is full or cannot be written; no temporary file is left.
    """
    remove_dead_drafts(path)
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        write(temporary)
        written = temporary.lstat()
        if stat.S_ISREG(written.st_mode) and written.st_nlink == 1:
            if stat.S_IMODE(written.st_mode) != mode:
                temporary.chmod(mode)  # safetensors ignores the umask
            sync_file(temporary)  # else the name may outlive a power cut without its bytes
        _rename(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # a full disk raises either, depending on the write that hits it
        _remove(temporary)
        raise _write_error(path, error, needed) from None
    except BaseException:
        _remove(temporary)
        raise


def _write_error(path: Path, error: OSError | RuntimeError, needed: Callable[[], int]) -> MachineError:
    if isinstance(error, OSError) and error.strerror and error.errno not in FULL:
        return MachineError(f"{path}: {error.strerror}", "expected a folder that can be written")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "the write failed"
    what = f"{path}: {reason}; about {needed()} bytes needed, {free_bytes(path.parent)} free"
    return MachineError(what, hint="free some space, or choose another --out")


def _rename(temporary: Path, path: Path) -> None:
    """Rename over `path`. Windows refuses while another process has it open, as a virus scanner does for a moment."""
    for wait in RENAME_WAITS if os.name == "nt" else ():
        try:
            temporary.replace(path)
            return
        except PermissionError:
            time.sleep(wait)
    temporary.replace(path)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody can guess, so that no link of that name lies in a stranger's folder."""
    return path.with_name(f"{_stem(path)}{current_owner().token}-{secrets.token_hex(4)}.tmp")


def _stem(path: Path) -> str:
    return f".{path.name[:LONGEST_NAME]}."


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # the original error is the one to report
        temporary.unlink(missing_ok=True)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of `folder`; 0 if the folder does not exist."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def remove_dead_drafts(path: Path) -> None:
    """Remove what killed processes left of the file at `path`. A draft of one that lives, or may live, stays."""
    with contextlib.suppress(OSError):  # whoever writes there will be told
        for draft, owner in _drafts(path.parent, _stem(path)):
            if owner is not None and owner.is_gone() and not is_another_users(draft):
                draft.unlink(missing_ok=True)


def remove_temporary_files(folder: Path, *, alone: bool = False) -> list[str]:
    """Remove the drafts that killed processes left in `folder`, and no other files.

    Args:
        alone: the caller holds the folder's lock. Then those of other hosts, containers and users go too: a run that
            was moved leaves the draft of its checkpoint behind. One of a process that lives here stays.

    Returns:
        A note for each that stays because its process may live elsewhere.
    """
    unknown = []
    for draft, owner in _drafts(folder, "."):
        theirs = is_another_users(draft)
        gone = owner is None or owner.is_gone()  # None: an earlier version's, whose number alone says nothing
        elsewhere = owner is not None and not owner.is_here()
        if (gone and not theirs) or (alone and (gone or elsewhere)):
            draft.unlink(missing_ok=True)
        elif theirs or elsewhere:
            unknown.append(stays(draft))
    return unknown


def _drafts(folder: Path, prefix: str) -> Iterator[tuple[Path, Owner | None]]:
    """The drafts in `folder` whose names begin with `prefix`, and who is writing each."""
    for name in os.listdir(folder):  # noqa: PTH208  # of a million files: no object for each
        match = TEMPORARY.fullmatch(name) if name.startswith(prefix) and name.endswith(".tmp") else None
        path = folder / name
        if match is not None and (path.is_symlink() or not path.is_dir()):
            yield path, Owner.parse(match[2])


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically; a link at `path` is replaced, not followed.

    Raises:
        MachineError: the disk is full or cannot be written.
    """
    # A traceback or recipe may contain a file name that is not valid UTF-8.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, raw: bytes) -> None:
    """As :func:`write_text`."""
    replace(path, lambda temporary: temporary.write_bytes(raw), lambda: len(raw))


def open_own(path: Path, flags: int = os.O_APPEND) -> IO[str]:
    """Open the text file at `path` to read and write it, made if there is none; a link is not followed.

    Raises:
        OSError: it cannot be written, or is a link.
    """
    try:
        if not NO_FOLLOW and path.is_symlink():
            raise OSError(errno.ELOOP, "")
        flags |= os.O_RDWR | os.O_CREAT | NO_FOLLOW | NO_WAIT | NOT_INHERITED | BINARY
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, f"{path.name} is a link") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path.name} is not a regular file")
    return os.fdopen(descriptor, "a+", encoding="utf-8", buffering=1, newline="")


def sync_file(path: Path) -> None:
    """Make the bytes of the file at `path` durable."""
    with path.open("rb+" if os.name == "nt" else "rb") as file:  # Windows flushes for a writer only
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, so that a rename survives a power cut.

    Some network file systems cannot, and Windows opens no folders: NTFS keeps a journal of its names.
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
