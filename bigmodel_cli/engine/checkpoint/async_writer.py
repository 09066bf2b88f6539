"""Writes checkpoints in a background thread, from a snapshot of the state, while training continues.

A save costs training only the snapshot: the digest, the zip and the disk are the thread's work. At most one
save is in progress. One more snapshot, if it is small, is queued until a newer one replaces it, so that epochs
shorter than a write do not stall. Errors are raised in the training thread, at a later save or at the end.
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

from bigmodel_cli.core.errors import DivergedError, InterruptedRun, LostRank
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.checkpoint.sharded import LocalTensors, write_index, write_shard

NAN_CHECKED = 1 << 24  # elements at once
MAX_QUEUED_BYTES = 1 << 28  # a snapshot of a larger state is not queued: saving waits for the write in progress


@dataclass(frozen=True)
class LocalShard:
    """What one rank writes of a sharded checkpoint, to the folder called `name` that all ranks see."""

    name: str
    step: int
    rank: int
    world: int
    state: Any
    """The plain values of the checkpoint; with `local` they are from ``sharded.split_state``."""
    local: LocalTensors
    timeout: float
    """Seconds that rank 0 waits for the shards of the others."""


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state, which later steps do not change; complete once `ready` returns."""

    state: dict[str, Any]
    ready: Callable[[], None]
    best: bool


class Writer:
    """Writes ``last.pt`` and ``best.pt`` in `folder`. As a context manager it finishes pending saves on exit.

    Tensors of the model whose names are in `frozen` never change, and are not copied.
    """

    def __init__(self, folder: Path, frozen: Collection[str] = ()) -> None:
        self.last, self.best = folder / "last.pt", folder / "best.pt"
        self.frozen = frozen
        self._lock = threading.Lock()
        self._writing = False
        self._queued: Snapshot | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._abandoned = threading.Event()

    def save(self, state: dict[str, Any], best: bool) -> None:
        """Take a snapshot of `state` now, and write it in the thread.

        Raises:
            MachineError: an earlier save failed, for example on a full disk.
            DivergedError: an earlier save was refused because its weights held NaN.
        """
        if checkpoint.tensor_bytes(state) > MAX_QUEUED_BYTES:
            self.flush()
        copy = Snapshot(*self._snapshot(state), best)
        with self._lock:
            if self._writing and (copy.best or self._queued is None or not self._queued.best):
                self._queued = copy
                return
        self.flush()
        self._writing = True
        # Not a daemon: Python would kill it in the middle of a write at exit.
        self._thread = threading.Thread(target=self._write_all, args=(copy,), name="checkpoint")
        self._thread.start()

    def _snapshot(self, state: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
        model = state["model"]
        unchanged = {name: model[name] for name in self.frozen if name in model and model[name].device.type == "cpu"}
        copy, ready = snapshot({**state, "model": {name: model[name] for name in model if name not in unchanged}})
        copy["model"] = {name: unchanged[name] if name in unchanged else copy["model"][name] for name in model}
        return copy, ready

    def save_shard(self, shard: LocalShard, best: bool) -> None:
        """Take a snapshot of this rank's shard now, and write it in the thread. Every rank calls it.

        Raises:
            MachineError, DivergedError: the save before this one failed.
        """
        self.flush()
        copy, ready = snapshot({name: tensor for name, (tensor, _, _) in shard.local.items()})
        # Listed now: later another rank may have begun the next save.
        obsolete = [path for path in self.last.parent.glob(atomic_files.SHARDS_PREFIX + "*") if path.name != shard.name]
        self._thread = threading.Thread(target=self._write_shard, args=(shard, copy, ready, best, obsolete))
        self._thread.start()

    def _write_shard(
        self, shard: LocalShard, copy: dict[str, Tensor], ready: Callable[[], None], best: bool, obsolete: list[Path]
    ) -> None:
        try:
            ready()
            require_finite({"model": copy, "model_ema": None, "progress": {"step": shard.step}})
            folder = self.last.parent / shard.name
            folder.mkdir(exist_ok=True)
            write_shard(folder, shard.rank, {k: local._replace(rows=copy[k]) for k, local in shard.local.items()})
            if shard.rank == 0:
                write_index(folder, shard.state, shard.world, shard.timeout, self._abandoned.is_set)
                for target in (self.best, self.last) if best else (self.last,):  # in this order, as below
                    atomic_files.symlink(target, folder)
                atomic_files.remove_sharded(obsolete, keep=(self.best, self.last))
        except BaseException as error:
            self._error = error

    def flush(self) -> None:
        """Wait until pending saves are durable; raises the error of a failed one."""
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
            self.flush()
            return
        if issubclass(kind, (InterruptedRun, LostRank)):  # a graceful stop has flushed already: this one is immediate
            self._abandoned.set()
        with contextlib.suppress(Exception):  # the error that ends the run is the one to report
            self.flush()

    def _write_all(self, copy: Snapshot | None) -> None:
        try:
            while copy is not None:
                self._write(copy)
                with self._lock:
                    copy, self._queued = self._queued, None
                    self._writing = copy is not None
        except BaseException as error:
            with self._lock:
                self._error, self._writing, self._queued = error, False, None

    def _write(self, copy: Snapshot) -> None:
        copy.ready()
        require_finite(copy.state)
        checkpoint.save(self.best if copy.best else self.last, copy.state, self._abandoned.is_set)
        if copy.best:
            # In this order a kill in between leaves best.pt as the newer file, which a resumed run takes:
            # best.pt is never older than the best metric recorded in last.pt.
            atomic_files.link(self.best, self.last)


def snapshot(state: Any) -> tuple[Any, Callable[[], None]]:
    """A copy of `state` on the CPU that shares no memory with it, and a function that waits until it is complete.

    Tied weights stay tied in the copy. From a CUDA device the copies go to pinned memory, in stream order:
    the host does not wait, and later steps do not change them.
    """
    copies: dict[Any, Tensor] = {}
    devices: set[torch.device] = set()

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
            if key not in copies or not value.numel():
                copies[key] = _on_cpu(value.detach())
                if value.is_cuda:
                    devices.add(value.device)
            return copies[key]
        if isinstance(value, dict):
            return {k: copy(v) for k, v in value.items()}
        if type(value) in (list, tuple):
            return type(value)(copy(v) for v in value)
        return value

    result = copy(state)
    copies.clear()  # `copy` refers to itself, so what it holds would stay until the garbage is collected
    events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def ready() -> None:
        for event in events:
            event.synchronize()

    return result, ready


def _on_cpu(value: Tensor) -> Tensor:
    if value.is_cuda:
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
    return value.clone() if value.device.type == "cpu" else value.to("cpu")


def _has_nan(tensor: Tensor) -> bool:
    """In parts: for a whole table the mask would take a quarter of its memory."""
    return any(bool(part.isnan().any()) for part in tensor.reshape(-1).split(NAN_CHECKED))


def require_finite(state: dict[str, Any]) -> None:
    """Refuse a state with NaN weights: they can overflow in a step whose loss and gradient were finite.

    Raises:
        DivergedError: a weight is NaN. Infinities are allowed: masks hold them.
    """
    for name, tensor in [*state["model"].items(), *(state["model_ema"] or {}).items()]:
        if tensor.is_floating_point() and _has_nan(tensor):
            raise DivergedError(
                f"step {state['progress']['step']}: {name} holds NaN: not saved", hint="a lower --lr or a warm-up"
            )
