"""Worker processes that keep the manners of the process that starts them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.plugins import import_file, imported_files
from bigmodel_cli.core.processes.children import isolate_children


@contextmanager
def worker_pool(
    processes: int, what: str, hint: str, begin: Callable[..., object], *given: Any
) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned `processes`, each of which calls `begin` with `given` first.

    They know the components of this one's ``--import``, leave Ctrl-C to it, and end when it does, however it ends.
    Where the work fails or is interrupted they are ended at once.

    Args:
        what: names one of them, "a tokenizer process", in the error where one is killed; with `hint`.

    Raises:
        MachineError: one was killed.
    """
    isolate_children()
    others = set(multiprocessing.active_children())  # of a program that uses this package
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _begin, (imported_files(), begin, given))
    try:
        yield pool
    except BrokenProcessPool:
        raise MachineError(f"{what} was killed", hint=hint) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(files: Sequence[str], begin: Callable[..., object], given: tuple[Any, ...]) -> None:
    for file in files:
        import_file(Path(file))
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin(*given)


def _exit_with_parent() -> None:
    """Exit when the parent does. A killed parent does not close its pipes, so the worker would not notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
