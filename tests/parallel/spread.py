"""A function on several ranks of one job: forks of the test's process, which has torch loaded, over gloo."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bigmodel_cli.engine.device.ranks import Ranks
from bigmodel_cli.engine.distributed.process_group import Group, join_group, leave_group


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spread(world: int, work: Callable[[Group], Any], folder: Path, timeout: float = 60) -> list[Any]:
    """What `work` returns (tensors and plain values) on each rank; a rank that raises fails the test."""
    port, children = free_port(), []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(int(2 * timeout))
                ranks = Ranks(rank, world, rank, world, "127.0.0.1", port)
                result = work(join_group(ranks, "gloo", timeout))
                torch.save(result, folder / f"rank-{rank}.result")
                leave_group()
                code = 0
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0] * world, codes
    return [torch.load(folder / f"rank-{rank}.result", weights_only=True) for rank in range(world)]


def grown(work: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that this process's memory grew by at most in `work` (Linux), and what that returned.

    Each large tensor has memory of its own, which goes with it: holes that a heap keeps are not counted.
    """
    libc, mmap_threshold, most_mmaps = ctypes.CDLL(None), -3, -4  # malloc.h
    libc.mallopt(mmap_threshold, 1 << 17)
    libc.mallopt(most_mmaps, 1 << 16)
    libc.malloc_trim(0)  # what others left is no longer there to be used
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    result = work()
    return _status("VmHWM") - before, result


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))
