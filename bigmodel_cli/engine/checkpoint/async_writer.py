"""Checkpoints are written in a thread, from a copy of the state, while training goes on.

A save costs training the copy alone: the digest, the zip and the wait for the disk are
the thread's. One save is under way at most, and one small one may wait for it, which a
newer one replaces: epochs shorter than a write are not held up. An error is raised in the
training thread, before a later save or at the end.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from bigmodel_cli.core import atomic_files
from bigmodel_cli.core.errors import DivergedError, InterruptedRun, LostRank
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.checkpoint.sharded import Held, write_index, write_shard


@dataclass(frozen=True)
class Parts:
    """What one rank writes of a checkpoint in parts, under the `name` of a folder that all ranks share."""

    name: str
    step: int
    rank: int
    world: int
    state: Any
    """The plain values, each tensor by name: see ``engine/checkpoint/sharded.py``, as for `mine`."""
    mine: Held
    timeout: float


MOST_WAITING = 1 << 28  # bytes of a state whose copy may wait while another is written


@dataclass(frozen=True)
class Copy:
    """A state that no step changes any more; all of it is there once `arrived` returns."""

    state: dict[str, Any]
    arrived: Callable[[], None]
    best: bool


class Writer:
    """Writes ``last.pt`` and ``best.pt`` in `folder`. Leaving it waits for the saves under way.

    Tensors of the model whose names are in `still` never change, and are not copied.
    """

    def __init__(self, folder: Path, still: Collection[str] = ()) -> None:
        self.last, self.best = folder / "last.pt", folder / "best.pt"
        self.still = still
        self._turn = threading.Lock()
        self._writing = False
        self._waiting: Copy | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._abandoned = threading.Event()

    def save(self, state: dict[str, Any], best: bool) -> None:
        """Copy `state` now, and write the copy in the thread.

        Raises:
            MachineError: a save before this one met a full disk.
            DivergedError: its weights were not finite, and it was not written.
        """
        if checkpoint.size(state) > MOST_WAITING:
            self.wait()
        copy = Copy(*self._copied(state), best)
        with self._turn:
            if self._writing and (copy.best or self._waiting is None or not self._waiting.best):
                self._waiting = copy
                return
        self.wait()
        self._writing = True
        # Not a daemon: Python would tear it down in the middle of a write at its end.
        self._thread = threading.Thread(target=self._write_all, args=(copy,), name="checkpoint")
        self._thread.start()

    def _copied(self, state: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
        model = state["model"]
        fixed = {name: model[name] for name in self.still if name in model and model[name].device.type == "cpu"}
        copy, arrived = copied({**state, "model": {name: model[name] for name in model if name not in fixed}})
        copy["model"] = {name: fixed[name] if name in fixed else copy["model"][name] for name in model}
        return copy, arrived

    def save_parts(self, parts: Parts, best: bool) -> None:
        """Copy this rank's part of a checkpoint now, and write it in the thread; every rank does.

        Raises:
            MachineError, DivergedError: what went wrong in the save before this one.
        """
        self.wait()
        copy, arrived = copied({name: tensor for name, (tensor, _, _) in parts.mine.items()})
        # Listed now: once this save is under way, another rank may have begun the next.
        old = [path for path in self.last.parent.glob(atomic_files.PARTS + "*") if path.name != parts.name]
        self._thread = threading.Thread(target=self._write_parts, args=(parts, copy, arrived, best, old))
        self._thread.start()

    def _write_parts(
        self, parts: Parts, copy: dict[str, Tensor], arrived: Callable[[], None], best: bool, old: list[Path]
    ) -> None:
        try:
            arrived()
            require_finite({"model": copy, "model_ema": None, "progress": {"step": parts.step}})
            folder = self.last.parent / parts.name
            folder.mkdir(exist_ok=True)
            begins = {name: begin for name, (_, begin, _) in parts.mine.items()}
            write_shard(folder, parts.rank, copy, begins, {name for name, (_, _, cut) in parts.mine.items() if cut})
            if parts.rank == 0:
                write_index(folder, parts.state, parts.world, parts.timeout, self._abandoned.is_set)
                for target in (self.best, self.last) if best else (self.last,):  # in this order, as below
                    atomic_files.point(target, folder)
                atomic_files.clear_parts(old, keep=(self.best, self.last))
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Until what was given to ``save`` is durable; raises what went wrong in it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.wait()
            return
        if issubclass(kind, (InterruptedRun, LostRank)):  # a graceful stop has waited: this one is at once
            self._abandoned.set()
        with contextlib.suppress(Exception):  # the error that ends the run is the one to tell
            self.wait()

    def _write_all(self, copy: Copy | None) -> None:
        try:
            while copy is not None:
                self._write(copy)
                with self._turn:
                    copy, self._waiting = self._waiting, None
                    self._writing = copy is not None
        except BaseException as error:
            with self._turn:
                self._error, self._writing, self._waiting = error, False, None

    def _write(self, copy: Copy) -> None:
        copy.arrived()
        require_finite(copy.state)
        checkpoint.save(self.best if copy.best else self.last, copy.state, self._abandoned.is_set)
        if copy.best:
            # In this order, a kill in between leaves the newer of the two as the better one,
            # and a resumed run takes the newer: best.pt is never behind what last.pt says of it.
            atomic_files.link(self.best, self.last)


def copied(state: Any) -> tuple[Any, Callable[[], None]]:
    """A copy of `state` on the CPU that shares no memory with it, and what to call until it is all there.

    A tensor that stands twice (tied weights) stands twice in the copy too. From a CUDA
    device the copies go to pinned memory and are ordered among its kernels: the host
    goes on, and later steps change nothing in them.
    """
    seen: dict[Any, Tensor] = {}
    devices: set[torch.device] = set()

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
            if key not in seen or not value.numel():
                seen[key] = _on_cpu(value.detach())
                if value.is_cuda:
                    devices.add(value.device)
            return seen[key]
        if isinstance(value, dict):
            return {k: copy(v) for k, v in value.items()}
        if type(value) in (list, tuple):
            return type(value)(copy(v) for v in value)
        return value

    result = copy(state)
    events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def arrived() -> None:
        for event in events:
            event.synchronize()

    return result, arrived


def _on_cpu(value: Tensor) -> Tensor:
    if value.is_cuda:
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
    return value.clone() if value.device.type == "cpu" else value.to("cpu")


def require_finite(state: dict[str, Any]) -> None:
    """A step that was finite can still have thrown the weights out of range: such a state is not worth keeping.

    Raises:
        DivergedError: a weight is NaN. (An infinity may be meant: it is what masks hold.)
    """
    for name, tensor in [*state["model"].items(), *(state["model_ema"] or {}).items()]:
        if tensor.is_floating_point() and tensor.isnan().any():
            raise DivergedError(
                f"step {state['progress']['step']}: {name} holds NaN: not saved", hint="a lower --lr or a warm-up"
            )
