"""The command line as it is on Windows, as far as Linux can stand in: ``python windows.py < COMMANDS``.

The modules and names that Windows lacks are missing for this package alone: what Python and torch import is theirs.
Each line of stdin is a JSON list of arguments; each line of stdout starts with the command's exit code.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import fcntl
import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

MISSING_MODULES = {"fcntl", "termios", "resource", "pwd", "grp", "pty", "tty", "syslog", "readline"}
MISSING = {
    "os": "fork forkpty killpg setsid getuid geteuid getpgid mkfifo nice uname sysconf preadv pwritev pread pwrite "
    "sched_getaffinity statvfs chown fchmod waitid O_NOFOLLOW O_NONBLOCK O_CLOEXEC O_DIRECTORY",
    "signal": "SIGHUP SIGUSR1 SIGUSR2 SIGKILL SIGPIPE SIGCHLD SIGQUIT SIGALRM sigwaitinfo pthread_sigmask alarm",
    "socket": "AF_UNIX",
}


class Without(ModuleType):
    """`module`, with other `values`, and without the names in `missing`."""

    def __init__(self, module: ModuleType, missing: set[str], values: dict[str, Any]) -> None:
        self.__dict__.update(_module=module, _missing=missing, _values=values)

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise AttributeError(f"module has no attribute {name!r} on Windows")
        return self._values[name] if name in self._values else getattr(self._module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)


def locking(descriptor: int, mode: int, count: int) -> None:
    """As ``msvcrt.locking``: `count` bytes from the descriptor's position on."""
    assert mode == 2
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, os.lseek(descriptor, 0, os.SEEK_CUR))
    except OSError as error:
        raise PermissionError(errno.EACCES, "Permission denied") from error


def open_file(path: Any, flags: int, mode: int = 0o777) -> int:
    if Path(path).is_dir():
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return os.open(path, flags & ~(1 << 30), mode)


class OpenProcess:
    restype: Any = None

    def __call__(self, access: int, inherit: bool, pid: int) -> int:
        return pid if Path(f"/proc/{pid}").exists() else 0


def process_times(handle: Any, created: Any, *rest: Any) -> int:
    started = Path(f"/proc/{handle.value}/stat").read_text().rpartition(")")[2].split()[19]
    ctypes.cast(created, ctypes.POINTER(ctypes.c_uint64))[0] = int(started)
    return 1


def memory_status(pointer: Any) -> int:
    pointer._obj.bytes[:2] = [16 * 2**30, 8 * 2**30]
    return 1


class CurrentProcess:
    restype: Any = None

    def __call__(self) -> int:
        return os.getpid()


def memory_info(process: Any, pointer: Any, size: int) -> int:
    pointer._obj.bytes[0] = 2**28
    return 1


KERNEL = SimpleNamespace(
    OpenProcess=OpenProcess(), GetProcessTimes=process_times, CloseHandle=lambda handle: 1,
    GlobalMemoryStatusEx=memory_status, GetCurrentProcess=CurrentProcess(), K32GetProcessMemoryInfo=memory_info,
)  # fmt: skip
VALUES: dict[str, dict[str, Any]] = {
    "os": {"name": "nt", "open": open_file, "O_BINARY": 1 << 30, "O_NOINHERIT": 0},
    "sys": {"platform": "win32"},
    "signal": {"SIGBREAK": signal.SIGQUIT},
    "socket": {},
    "ctypes": {
        "WinDLL": lambda name, **options: KERNEL, "windll": SimpleNamespace(kernel32=KERNEL), "get_last_error": int,
    },
}  # fmt: skip
MSVCRT = ModuleType("msvcrt")
MSVCRT.__dict__.update(locking=locking, LK_NBLCK=2)


def install() -> None:
    """From here on, the package's own imports are those of Windows."""
    real = builtins.__import__
    found = {name: Without(real(name), set(MISSING.get(name, "").split()), VALUES[name]) for name in VALUES}

    def imported(name: str, of: Any = None, *rest: Any, **options: Any) -> Any:
        if not str((of or {}).get("__name__", "")).startswith("bigmodel"):
            return real(name, of, *rest, **options)
        if name == "msvcrt":
            return MSVCRT
        if name in MISSING_MODULES:
            raise ImportError(f"No module named {name!r}", name=name)
        return found[name] if name in found else real(name, of, *rest, **options)

    builtins.__import__ = imported


def main() -> None:
    install()
    from bigmodel_cli import cli
    from bigmodel_cli.core.files import file_lock, offset_files
    from bigmodel_cli.core.processes import host_memory

    with Path("pixels").open("wb+") as file:
        assert offset_files.write_at(file.fileno(), b"abc", 5) == 3
        buffer = bytearray(2)
        assert offset_files.read_into(file.fileno(), memoryview(buffer), 6) == 2 and buffer == b"bc"
    assert not hasattr(file_lock, "fcntl") and host_memory.memory_peak() == 2**28
    assert (host_memory.memory_available(), host_memory.memory_total()) == (8 * 2**30, 16 * 2**30)
    for line in sys.stdin:
        arguments, code = json.loads(line), 0
        sys.argv = ["bigmodel", *arguments]
        try:
            cli._run()
        except SystemExit as end:
            code = int(end.code or 0)
        print(f"\n{code} {arguments}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
