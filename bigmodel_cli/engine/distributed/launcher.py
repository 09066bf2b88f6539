"""Starts the ranks of a run on this host under torch's elastic agent, and ends with the exit code that they give."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.engine.device.ranks import ROUND, own_address

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STOPPED = tuple(128 + number for number in SIGNALS)
FINAL = (2, 4, 128 + signal.SIGPIPE, *STOPPED)
"""Exit codes of workers that would end the same way again: bad input, diverged, stopped from outside."""
STOP_SECONDS = 10  # from the end of one worker, SIGTERM to the others, to SIGKILL
LAST_CALL = 5.0  # seconds that a meeting with enough hosts waits for more
ANSWER = 15.0  # seconds without an answer of the meeting place after which a host is cut off
KEEP_ALIVE = 5.0  # seconds between a host's signs of life; after three that are missing it is gone


@dataclass(frozen=True)
class Plan:
    """How many processes here, on how many hosts, met where, started again how often."""

    processes: int
    least_hosts: int = 1
    most_hosts: int = 1
    meeting: str | None = None
    max_restarts: int = 0


def processes_here(asked: str | None) -> int:
    """How many processes ``--nproc`` asks for: ``auto`` is one for each GPU, else for each core.

    Raises:
        InputError: it is no number above 0.
    """
    from bigmodel_cli.engine.device.placement import devices_here

    if asked is None or asked == "auto":
        return devices_here()
    if not asked.isdigit() or int(asked) < 1:
        raise InputError(f"--nproc {asked}", "expected auto or a number above 0")
    return int(asked)


class Agent(LocalElasticAgent):
    """torch's agent, which does not start again what would end the same way."""

    codes: dict[int, int]
    handed: bool = False
    """Whether a signal came that was meant for all."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            self.codes = own_ends({rank: failure.exitcode for rank, failure in result.failures.items()}, self.handed)
            if any(code in FINAL for code in self.codes.values()):
                self._remaining_restarts = 0
        return result

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        # A host remembers where it first met the others' rank 0, which may be the host that was lost.
        worker_group.spec.rdzv_handler._bootstrap_store_info = None  # type: ignore[attr-defined]
        super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        # The store outlives a start of the workers: what they leave in it must not be taken for news in the next.
        mine = uuid.uuid4().hex
        assert worker_group.store is not None
        os.environ[ROUND] = worker_group.store.compare_set("bigmodel-round", "", mine).decode()
        started = super()._start_workers(worker_group)
        assert self._pcontext is not None
        close = self._pcontext.close
        # By default a rank that waits for a lost one is given half a minute to notice.
        self._pcontext.close = lambda death_sig=None, timeout=30: close(death_sig, min(timeout, STOP_SECONDS))  # type: ignore[method-assign]
        return started

    def hand_on(self, number: int) -> None:
        """Send the signal to every worker."""
        self.handed = True
        if self._pcontext is not None:
            for process in self._pcontext.pids().values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)


def start(plan: Plan, arguments: list[str], cut_off: Callable[[MachineError], None]) -> int:
    """Run ``bigmodel`` with `arguments` in each process of `plan`; the exit code that a plain run would have.

    Where the place of meeting no longer answers, `cut_off` is told so, and this process ends at once: it
    cannot be interrupted in what it asks the place.

    Raises:
        MachineError: the hosts did not meet, or the place where they met is gone.
    """
    _set_environment(plan)
    meeting, here, first = _meeting(plan.meeting)
    if not first:
        threading.Thread(target=_watch, args=(meeting, cut_off), name="meeting", daemon=True).start()
    try:
        handler = rendezvous.get_rendezvous_handler(_rendezvous_parameters(plan, meeting, here, first))
        agent = Agent(_workers(plan, arguments, handler), DefaultLogsSpecs())
        agent.codes = {}
        with _handed_on(agent.hand_on):
            result = agent.run()
    except Exception as error:  # the agent raises what its store does: timeouts, resets, closed meetings
        reason = str(error).partition("\n")[0] or type(error).__name__
        what = f"the hosts did not meet at {meeting}, or lost each other ({type(error).__name__}: {reason})"
        raise MachineError(what, hint="the first host's address and an open port") from None
    with contextlib.suppress(Exception):
        handler.shutdown()
    if result is None:
        raise MachineError(
            "the hosts' meeting was closed", "expected this host to be wanted", "the same --nnodes on all"
        )
    return exit_code(agent.codes) if result.is_failed() else 0


def _set_environment(plan: Plan) -> None:
    """What the agent and its workers take from this process."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it logs, we tell
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // plan.processes, 1))
    os.environ["BIGMODEL_LAUNCHER"] = str(os.getpid())
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"  # the others are ours


def _rendezvous_parameters(plan: Plan, meeting: str, here: str, first: bool) -> RendezvousParameters:
    return RendezvousParameters(
        backend="c10d",
        endpoint=meeting,
        run_id="bigmodel" if plan.meeting else str(uuid.uuid4()),
        min_nodes=plan.least_hosts,
        max_nodes=plan.most_hosts,
        local_addr=here,
        is_host=first,
        last_call_timeout=LAST_CALL,
        keep_alive_interval=KEEP_ALIVE,
        read_timeout=4 * ANSWER,  # it can hang for good when that is over: `_watch` comes before
    )


def _workers(plan: Plan, arguments: list[str], handler: RendezvousHandler) -> WorkerSpec:
    """The same command again, in each process."""
    return WorkerSpec(
        role="rank",
        local_world_size=plan.processes,
        entrypoint=sys.executable,
        args=("-m", "bigmodel_cli", *arguments),
        rdzv_handler=handler,
        max_restarts=plan.max_restarts,
        monitor_interval=0.1,
    )


def _meeting(place: str | None) -> tuple[str, str, bool]:
    """Where to meet, this host's address as seen from there, and whether it is this host that the others come to.

    Raises:
        InputError: it is not of the form host:port.
        MachineError: there is no way there.
    """
    if place is None:
        return "127.0.0.1:0", "127.0.0.1", True
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--rdzv {place}", "expected HOST:PORT", "--rdzv 10.0.0.1:29500")
    try:
        address = socket.gethostbyname(host)
        here = own_address(address)
    except OSError as error:
        raise MachineError(f"--rdzv {place}: {error.strerror or error}", hint="the first host's address") from None
    return f"{address}:{port}", here, here == address


def _watch(meeting: str, cut_off: Callable[[MachineError], None]) -> None:
    """End this process, and with it its workers, once the place of meeting has been silent for some time."""
    host, _, port = meeting.rpartition(":")
    heard: float | None = None  # nobody may be there yet
    while heard is None or time.monotonic() - heard < ANSWER:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=KEEP_ALIVE):
            heard = time.monotonic()
        time.sleep(KEEP_ALIVE)
    cut_off(
        MachineError(f"cut off from {meeting}", f"it gave no answer for {ANSWER:.0f} s", "the first host, the network")
    )
    os._exit(MachineError.exit_code)


def own_ends(codes: dict[int, int], handed: bool) -> dict[int, int]:
    """The exit codes of `codes` without those that the agent's SIGTERM brought about when another rank had failed."""
    stopped = (*STOPPED, -signal.SIGTERM)
    others = {rank: code for rank, code in codes.items() if code not in stopped}
    return codes if handed or not others else others


def exit_code(codes: dict[int, int]) -> int:
    """One code for the ranks' `codes`: what would be final first, then bad luck of a machine, then a bug.

    Raises:
        MachineError: a signal from outside killed a rank, and no other says more.
    """
    found = set(codes.values())
    for code in (*FINAL, 1):
        if code in found:
            return code
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    if killed:
        rank, number = next(iter(killed.items()))
        why = "; out of memory?" if number == signal.SIGKILL else ""
        raise MachineError(
            f"rank {rank} was killed by {signal.Signals(number).name}{why}",
            hint="bigmodel train --resume --out RUN; --max-restarts 3 goes on by itself",
        )
    return 3


@contextlib.contextmanager
def _handed_on(to: Callable[[int], None]) -> Iterator[None]:
    """Signals go to the workers, which save and end; this process then ends as they did."""

    def handle(number: int, frame: FrameType | None) -> None:
        to(number)

    before: dict[Any, Any] = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
