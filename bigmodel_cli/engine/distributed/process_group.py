"""The processes of one job: how they meet, agree, share values, and learn that one of them is gone."""

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
from bigmodel_cli.engine.device.ranks import Ranks, interface, own_address

FAREWELL = 3.0  # seconds that a rank with an error waits for rank 0's, which may be the same
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Group:
    """The processes of one job. What they agree on goes over gloo between hosts' memories, and waits for no GPU."""

    ranks: Ranks = field(default_factory=Ranks)
    store: Any = None
    width: int = 1
    """So many ranks in a row have one model between them, and see the same samples (tensor parallelism)."""

    @property
    def rank(self) -> int:
        return self.ranks.rank

    @property
    def world(self) -> int:
        return self.ranks.world

    @property
    def shard(self) -> int:
        """Which of the `shards` parts of each batch is this rank's."""
        return self.ranks.rank // self.width

    @property
    def shards(self) -> int:
        return self.ranks.world // self.width

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes and prints."""
        return self.ranks.rank == 0

    def all_reduce_sum(self, values: list[float]) -> list[float]:
        """The sum over shards of each of `values`. On one host about 0.1 ms."""
        if self.world == 1:
            return values
        return self._sums(values if self.ranks.rank % self.width == 0 else [0.0] * len(values))

    def _sums(self, values: list[float]) -> list[float]:
        """Over every rank."""
        sent = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sent)
        return sent.tolist()  # type: ignore[no-any-return]

    def sum(self, value: float) -> float:
        return self.all_reduce_sum([value])[0]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        return flag if self.world == 1 else self._sums([float(flag)])[0] > 0

    def all_gather(self, value: float) -> list[float]:
        """Every rank's `value`, in order of rank."""
        if self.world == 1:
            return [value]
        parts = [torch.zeros(1, dtype=torch.float64) for _ in range(self.world)]
        dist.all_gather(parts, torch.tensor([value], dtype=torch.float64))
        return [float(p.item()) for p in parts]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value` (plain values), on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, device=CPU)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`: tensors and plain values, which come from these processes alone."""
        if self.world == 1:
            return [value]
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, value)
        return parts

    def barrier(self) -> None:
        """Until every rank is here."""
        self.any(False)

    def last_words(self, line: str) -> bool:
        """Whether this process is the one to tell the error `line`: rank 0 tells its own, the others what it did not.

        Called by a rank that is about to end; rank 0 calls it once it has told its error.
        """
        if self.store is None:
            return True
        with contextlib.suppress(Exception):  # the store has gone with its host: better told twice than never
            if self.is_main:
                self.store.set("last-words", line)
                return True
            with contextlib.suppress(dist.DistError, RuntimeError):
                self.store.wait(["last-words"], timedelta(seconds=FAREWELL))
                told = self.store.get("last-words").decode()
                if told == line or line.startswith(LOST):
                    return False
            what = LOST if line.startswith(LOST) else line
            return bool(self.store.add(f"told-{hashlib.sha256(what.encode()).hexdigest()}", 1) == 1)
        return True


ALONE = Group()
LOST = "lost another rank"


def join(ranks: Ranks, backend: str, timeout: float) -> Group:
    """Meet the other processes of the job, to talk over `backend`.

    Raises:
        MachineError: they did not come within `timeout` seconds.
    """
    if ranks.world == 1:
        return Group(ranks)
    limit = timedelta(seconds=timeout)
    _name_interface(ranks)
    place = f"tcp://{ranks.address}:{ranks.port}?rank={ranks.rank}&world_size={ranks.world}"
    try:
        # env:// knows the store of an elastic agent, which outlives the workers.
        os.environ.update(MASTER_ADDR=ranks.address, MASTER_PORT=str(ranks.port))
        store, _, _ = next(iter(dist.rendezvous("env://", ranks.rank, ranks.world, timeout=limit)))
        store.set_timeout(limit)
        store = dist.PrefixStore(f"bigmodel-{ranks.round}", store)
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=limit)
        group = Group(ranks, dist.PrefixStore("words", store))
        group.barrier()
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        what = f"rank {ranks.rank} met no other at {place.split('?')[0]} ({reason})"
        raise MachineError(what, hint="the first host's address and an open port: MASTER_ADDR, MASTER_PORT") from None
    return group


def _name_interface(ranks: Ranks) -> None:
    """Have gloo listen where other hosts reach it: by itself it takes what the host's name means, often 127.0.1.1."""
    if "GLOO_SOCKET_IFNAME" in os.environ or ranks.local_world == ranks.world:
        return
    with contextlib.suppress(OSError):
        name = interface(own_address(socket.gethostbyname(ranks.address)))
        if name is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = name


def leave() -> None:
    """Close what ``join`` opened; only where every rank comes here."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def translate_rank_errors() -> Iterator[None]:
    """A broken or silent connection inside as what it is: the loss of another rank.

    Raises:
        LostRank: the connection to another rank broke, or it did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:  # gloo has no kind of its own
        if not dist.is_initialized() or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        text = str(error)
        late = "imed out" in text or "timeout" in text
        reason = "no answer within the time-out" if late else "its connection closed"
        raise LostRank(
            f"{LOST}: {reason}",
            hint="bigmodel train --resume --out RUN; --max-restarts goes on by itself; --timeout is how long to wait",
        ) from error
