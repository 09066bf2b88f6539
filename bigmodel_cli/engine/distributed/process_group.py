"""The process group of a job: joining it, collectives on plain values, and detecting a lost rank."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from bigmodel_cli.core.errors import LostRank, MachineError
from bigmodel_cli.engine.device.ranks import Ranks, interface_with, local_address_to

REPORT_TIMEOUT = 3.0  # seconds that a failing rank waits for rank 0's error, which may be the same
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Group:
    """The processes of one job. Its collectives run over gloo on CPU tensors, so that they never wait for a GPU."""

    ranks: Ranks = field(default_factory=Ranks)
    store: Any = None
    tensor_parallel_size: int = 1
    """How many consecutive ranks share each matrix of the model, and so see the same samples."""

    @property
    def rank(self) -> int:
        return self.ranks.rank

    @property
    def world(self) -> int:
        return self.ranks.world

    @property
    def data_parallel_rank(self) -> int:
        """Which of the `data_parallel_size` parts of each batch this rank computes."""
        return self.ranks.rank // self.tensor_parallel_size

    @property
    def data_parallel_size(self) -> int:
        """Into how many parts each batch is divided."""
        return self.ranks.world // self.tensor_parallel_size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one to write and print."""
        return self.ranks.rank == 0

    def all_reduce_sum(self, values: list[float]) -> list[float]:
        """The sum of each of `values` over the data-parallel ranks. Takes about 0.1 ms on one host."""
        if self.world == 1:
            return values
        return self._sums(values if self.ranks.rank % self.tensor_parallel_size == 0 else [0.0] * len(values))

    def _sums(self, values: list[float]) -> list[float]:
        """The sums over all ranks."""
        sent = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sent)
        return sent.tolist()  # type: ignore[no-any-return]

    def sum(self, value: float) -> float:
        return self.all_reduce_sum([value])[0]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        return flag if self.world == 1 else self._sums([float(flag)])[0] > 0

    def all_gather(self, value: float) -> list[float]:
        """The `value` of every rank, in order of rank."""
        if self.world == 1:
            return [value]
        gathered = [torch.zeros(1, dtype=torch.float64) for _ in range(self.world)]
        dist.all_gather(gathered, torch.tensor([value], dtype=torch.float64))
        return [float(p.item()) for p in gathered]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`, which consists of plain values, on every rank."""
        if self.world == 1:
            return value
        objects = [value]
        dist.broadcast_object_list(objects, 0, device=CPU)
        return objects[0]

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every rank: tensors and plain values. It is pickled, which is safe within a job."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        """Wait until every rank has called it."""
        self.any(False)

    def claim_error_report(self, line: str) -> bool:
        """Whether this process should print the error `line`, so that each error of a job is printed once.

        Rank 0 prints its own error, and the other ranks print errors that no rank has claimed. A rank calls
        this when it is about to exit; rank 0 after it has printed its error.
        """
        if self.store is None:
            return True
        with contextlib.suppress(Exception):  # the store may be lost with its host: better printed twice than never
            if self.is_main:
                self.store.set("last-words", line)
                return True
            with contextlib.suppress(dist.DistError, RuntimeError):
                self.store.wait(["last-words"], timedelta(seconds=REPORT_TIMEOUT))
                printed = self.store.get("last-words").decode()
                if printed == line or line.startswith(LOST_RANK):
                    return False
            what = LOST_RANK if line.startswith(LOST_RANK) else line
            return bool(self.store.add(f"printed-{hashlib.sha256(what.encode()).hexdigest()}", 1) == 1)
        return True


SINGLE_PROCESS = Group()
LOST_RANK = "lost another rank"


def join_group(ranks: Ranks, backend: str, timeout: float) -> Group:
    """Join the process group of the job, which communicates over `backend`.

    Raises:
        MachineError: the other ranks did not join within `timeout` seconds.
    """
    if ranks.world == 1:
        return Group(ranks)
    limit = timedelta(seconds=timeout)
    _name_interface(ranks)
    place = f"tcp://{ranks.address}:{ranks.port}?rank={ranks.rank}&world_size={ranks.world}"
    try:
        # env:// finds the store of an elastic agent, which outlives the workers.
        os.environ.update(MASTER_ADDR=ranks.address, MASTER_PORT=str(ranks.port))
        store, _, _ = next(iter(dist.rendezvous("env://", ranks.rank, ranks.world, timeout=limit)))
        store.set_timeout(limit)
        store = dist.PrefixStore(f"bigmodel-{ranks.round}", store)
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=limit)
        group = Group(ranks, dist.PrefixStore("words", store))
        group.barrier()
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        what = f"rank {ranks.rank} could not join the others at {place.split('?')[0]} ({reason})"
        raise MachineError(what, hint="the first host's address and an open port: MASTER_ADDR, MASTER_PORT") from None
    return group


def _name_interface(ranks: Ranks) -> None:
    """Have gloo listen on the interface that other hosts reach: by default it resolves the host's name, which is
    often 127.0.1.1."""
    if "GLOO_SOCKET_IFNAME" in os.environ or ranks.local_world == ranks.world:
        return
    with contextlib.suppress(OSError):
        name = interface_with(local_address_to(socket.gethostbyname(ranks.address)))
        if name is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = name


def leave_group() -> None:
    """Destroy the process group. Every rank must call it."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def translate_rank_errors() -> Iterator[None]:
    """Translate the errors of a broken or timed-out connection in the block.

    Raises:
        LostRank: the connection to another rank broke, or the rank did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:  # gloo has no error class of its own
        if not dist.is_initialized() or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        text = str(error)
        late = "imed out" in text or "timeout" in text
        reason = "no answer within the time-out" if late else "its connection closed"
        raise LostRank(
            f"{LOST_RANK}: {reason}",
            hint="bigmodel train --resume --out RUN; --max-restarts resumes by itself; --timeout waits longer",
        ) from error
