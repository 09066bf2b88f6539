"""Over which processes a run is spread, and how: one, DDP, FSDP2 or tensor parallel. The loop sees a Parallel alone."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.engine.placement import Placement
from bigmodel_cli.engine.ranks import Ranks, interface, own_address

FAREWELL = 3.0  # seconds that a rank with an error waits for rank 0's, which may be the same
BEHIND, LEAST_BEHIND = 1.3, 0.1  # of the median rank's time, and in seconds: what makes a straggler
SHARE_OF_MEMORY = 0.6  # for the model and its optimizer; the rest is for activations
CPU = torch.device("cpu")


class LostRank(MachineError):
    """Another process of the job ended, or does not answer: what went wrong is its to tell."""


@dataclass(frozen=True)
class Group:
    """The processes of one job. What they agree on goes over gloo between hosts' memories, and waits for no GPU."""

    ranks: Ranks = field(default_factory=Ranks)
    store: Any = None

    @property
    def rank(self) -> int:
        return self.ranks.rank

    @property
    def world(self) -> int:
        return self.ranks.world

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone writes and prints."""
        return self.ranks.rank == 0

    def totals(self, values: list[float]) -> list[float]:
        """The sum over ranks of each of `values`. On one host about 0.1 ms."""
        if self.world == 1:
            return values
        sent = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sent)
        return sent.tolist()  # type: ignore[no-any-return]

    def total(self, value: float) -> float:
        return self.totals([value])[0]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        return flag if self.world == 1 else self.total(float(flag)) > 0

    def each(self, value: float) -> list[float]:
        """Every rank's `value`, in order of rank."""
        if self.world == 1:
            return [value]
        parts = [torch.zeros(1, dtype=torch.float64) for _ in range(self.world)]
        dist.all_gather(parts, torch.tensor([value], dtype=torch.float64))
        return [float(p.item()) for p in parts]

    def share(self, value: Any) -> Any:
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

    def wait(self) -> None:
        """Until every rank is here."""
        self.any(False)

    def last_words(self, line: str) -> bool:
        """Whether this process is the one to tell the error `line`: rank 0 tells its own, the others what it did not.

        Called by a rank that is about to end; rank 0 calls it once it has told its error.
        """
        if self.store is None:
            return True
        with contextlib.suppress(Exception):  # the store has gone with its host: better told twice than never
            if self.leads:
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
        group.wait()
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
def losses_told() -> Iterator[None]:
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


class Parallel:
    """One run on one process; the base of the others. `forward` is what training calls."""

    strategy = "none"

    def __init__(self, group: Group | None = None) -> None:
        self.group = group or Group()

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` as training calls it."""
        return model

    def pieces(self, wanted: int, size: int) -> int:
        """Micro-batches in a step of `size` samples over all ranks: as many on every rank."""
        return min(wanted, size // self.group.world)

    def syncing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around the passes of a micro-batch: gradients travel with the last of a step alone."""
        return contextlib.nullcontext()

    def out_of_memory(self, here: bool) -> bool:
        """Whether the passes of a step ran out of memory, `here` or on any rank."""
        return here

    def summed(self, value: Tensor) -> Tensor:
        """The sum of every rank's `value`, on its device."""
        return value

    def __str__(self) -> str:
        return f"{self.group.world} processes, {self.strategy}" if self.group.world > 1 else "one process"

    def total(self, count: int) -> int:
        """The sum of every rank's `count` of what its part of the batch holds."""
        return int(self.group.total(count))

    def whole(self, value: Any, keep: bool = True) -> Any:
        """`value` with each tensor that is cut over the ranks as one; every rank calls it, one with `keep` has it."""
        return value

    def cut(self, values: Mapping[str, Any], like: Mapping[str, Any]) -> Mapping[str, Any]:
        """Whole tensors cut as those of the same name in `like` are."""
        return values

    def cut_optimizer(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
        """A whole optimizer's state as the ranks hold it."""
        return state

    def straggler(self, seconds: float) -> str:
        """The rank that keeps the others waiting, where one's own part of the work (`seconds`) takes far longer."""
        each = self.group.each(seconds)
        usual, slowest = sorted(each)[(len(each) - 1) // 2], max(each)
        if slowest < BEHIND * usual or slowest - usual < LEAST_BEHIND:
            return ""
        return f"rank {each.index(slowest)} takes {slowest / max(usual, 1e-9):.1f} times as long"

    def average_buffers(self, run: Any) -> None:
        """Make what BatchNorm counted on each rank the mean over ranks."""

    @property
    def averaged(self) -> int:
        """Over how many parts gradients are averaged, where they should be summed."""
        return self.group.world


class DataParallel(Parallel):
    """Every rank holds the whole model and takes its share of each batch (Li et al. 2020, PyTorch Distributed).

    The first step at a size sends nothing until all ranks are through its passes: a rank that
    runs out of memory in them leaves none of the others waiting.
    """

    strategy = "ddp"

    def __init__(self, group: Group, *, unused: bool) -> None:
        super().__init__(group)
        self.unused, self.careful = unused, True
        self.ddp: nn.parallel.DistributedDataParallel | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        quiet = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its old name
        options: dict[str, Any] = {quiet: False}  # see average_buffers: no broadcast a step
        self.ddp = nn.parallel.DistributedDataParallel(
            model, gradient_as_bucket_view=True, find_unused_parameters=self.unused, **options
        )
        return self.ddp

    def syncing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        assert self.ddp is not None
        return self.ddp.no_sync() if self.careful or not last else contextlib.nullcontext()

    def out_of_memory(self, here: bool) -> bool:
        if not self.careful:
            if here:
                what = f"out of memory in mid-run on rank {self.group.rank}"
                raise MachineError(what, hint="--resume with --set train.accumulate=2, or a smaller --batch-size")
            return False
        if self.group.any(here):
            return True
        assert self.ddp is not None
        trained = [(n, p) for n, p in self.ddp.module.named_parameters() if p.requires_grad]
        without = [n for n, p in trained if p.grad is None]
        if without and not self.unused:
            what = f"{len(without)} parameters had no part in the loss, such as {without[0]}"
            raise InputError(what, "expected all to", "--set parallel.unused=true")
        for _, p in trained:
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(grad.div_(self.group.world))
            p.grad = grad
        self.careful = False
        return False

    def summed(self, value: Tensor) -> Tensor:
        dist.all_reduce(value)
        return value

    def average_buffers(self, run: Any) -> None:
        for buffer in (*run.model.buffers(), *(run.ema.module.buffers() if run.ema else ())):
            if buffer.is_floating_point():
                dist.all_reduce(buffer.div_(self.group.world))


def parallel_for(group: Group, recipe: Recipe, placement: Placement, model: nn.Module, unused: bool) -> Parallel:
    """The strategy that the recipe's ``parallel`` section names, or by `auto` that fits the memory.

    Raises:
        InputError: it does not go with the rest of the recipe.
    """
    section = recipe.parallel
    if group.world == 1:
        return Parallel(group)
    chosen = section.strategy
    if chosen == "auto":
        chosen = group.share("ddp" if needs(model) < SHARE_OF_MEMORY * placement.memory_here(group.ranks) else "fsdp")
    if chosen == "ddp":
        return DataParallel(group, unused=unused or section.unused)
    from bigmodel_cli.engine.sharded import FullyShard

    if recipe.optimizer.name == "muon" or unused or section.sync_batchnorm:
        what = "muon" if recipe.optimizer.name == "muon" else "a method in stages" if unused else "sync_batchnorm"
        raise InputError(f"parallel.strategy fsdp with {what}", "expected ddp", "--set parallel.strategy=ddp")
    return FullyShard(group, placement, offload=section.offload)


def with_synced_batchnorm(model: nn.Module, group: Group, placement: Placement) -> nn.Module:
    """`model` with each BatchNorm over the batch of all ranks (Ioffe and Szegedy 2015, as if on one device).

    Raises:
        InputError: the device is no GPU, for which alone torch has it.
    """
    if placement.device.type != "cuda":
        raise InputError(f"parallel.sync_batchnorm on {placement.device.type}", "expected GPUs")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if group.world > 1 else model  # type: ignore[no-any-return]


def needs(model: nn.Module) -> int:
    """Bytes of weights, gradients and the two moments of Adam, without activations."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return 3 * trained + sum(p.numel() * p.element_size() for p in model.parameters())
