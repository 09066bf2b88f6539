"""An exclusive lock on an open file, which the system lets go when its holder ends, however it ends."""

from __future__ import annotations

from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    BEYOND_THE_TEXT = 2**30
    """The byte to lock. On Windows nobody else can read a locked byte, and the file says who holds it."""

    def try_lock(file: IO[Any], shared: bool = False) -> bool:
        """Lock `file` until it is closed; False if another process has it. Here no lock is `shared`.

        Raises:
            OSError: its file system has no locks.
        """
        if file.writable():
            file.flush()
        place = file.tell()
        file.seek(BEYOND_THE_TEXT)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except PermissionError:
            return False
        finally:
            file.seek(place)
        return True

else:

    def try_lock(file: IO[Any], shared: bool = False) -> bool:
        """Lock `file` until it is closed; False if another process has it. Processes may share a `shared` lock.

        Raises:
            OSError: its file system has no locks.
        """
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
