"""Starts the ranks of a run on this host under torch's elastic agent, and reduces their exit codes to one."""

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
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.processes.children import isolate_children
from bigmodel_cli.core.processes.cpu_count import available_cores
from bigmodel_cli.core.processes.stop_signals import KILL, SIGPIPE, STOP_SIGNALS, signal_name
from bigmodel_cli.engine.device.hardware import oom_kills
from bigmodel_cli.engine.device.ranks import ATTEMPT_VARIABLE, local_address_to

SIGNAL_CODES = tuple(128 + number for number in STOP_SIGNALS)
FINAL_CODES = (2, 4, 128 + SIGPIPE, *SIGNAL_CODES)
"""Exit codes after which a restart would fail the same way: bad input, diverged, stopped from outside."""
KILL_AFTER_SECONDS = 10  # between SIGTERM and SIGKILL to the other workers when one has failed
LAST_CALL_SECONDS = 5.0  # how long a rendezvous with enough hosts waits for more
RENDEZVOUS_TIMEOUT = 15.0  # seconds without an answer of the rendezvous after which this host gives up
HEARTBEAT_SECONDS = 5.0  # between heartbeats of a host; it is lost after three missing ones


@dataclass(frozen=True)
class LaunchPlan:
    """What to launch: processes on this host, the number of hosts, the rendezvous endpoint, and restarts."""

    processes: int
    min_hosts: int = 1
    max_hosts: int = 1
    endpoint: str | None = None
    max_restarts: int = 0


def process_count(requested: str | None) -> int:
    """How many processes ``--nproc`` requests: ``auto`` is one per GPU, or one per core without any.

    Raises:
        InputError: it is not a positive number.
    """
    from bigmodel_cli.engine.device.placement import local_device_count

    if requested is None or requested == "auto":
        return local_device_count()
    if not requested.isdigit() or int(requested) < 1:
        raise InputError(f"--nproc {requested}", "expected auto or a number above 0")
    return int(requested)


class Agent(LocalElasticAgent):
    """torch's elastic agent, without restarts that would fail the same way again."""

    codes: dict[int, int]
    signalled: bool = False
    """Whether a signal from outside was forwarded to the workers."""
    running: frozenset[int] = frozenset()
    """The ranks that still ran when this agent began to stop the workers: it ended them, nothing else did."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
            self.codes = root_failures(codes, self.signalled, self.running)
            if any(code in FINAL_CODES for code in self.codes.values()):
                self._remaining_restarts = 0
        return result

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        # The handler caches the address of the first rank 0, which may be on the host that was lost.
        worker_group.spec.rdzv_handler._bootstrap_store_info = None  # type: ignore[attr-defined]
        super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        # The store outlives a restart: keys of the last attempt must not be read in the next.
        attempt = uuid.uuid4().hex
        assert worker_group.store is not None
        os.environ[ATTEMPT_VARIABLE] = worker_group.store.compare_set("bigmodel-round", "", attempt).decode()
        started = super()._start_workers(worker_group)
        assert self._pcontext is not None
        context, close = self._pcontext, self._pcontext.close

        def close_sooner(death_sig: Any = None, timeout: int = 30) -> None:
            """The default gives a rank that waits for a lost one half a minute to exit."""
            handlers = getattr(context, "subprocess_handlers").items()  # noqa: B009  # of a type that torch does not name
            alive = [local for local, handler in handlers if handler.proc.poll() is None]
            self.running = frozenset(worker_group.workers[local].global_rank for local in alive)
            close(death_sig, min(timeout, KILL_AFTER_SECONDS))

        self._pcontext.close = close_sooner  # type: ignore[method-assign]
        return started

    def forward_signal(self, number: int) -> None:
        """Forward the signal to every worker."""
        self.signalled = True
        if self._pcontext is not None:
            for process in self._pcontext.pids().values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)


def start(plan: LaunchPlan, arguments: list[str], on_lost_host: Callable[[MachineError], None]) -> int:
    """Run ``bigmodel`` with `arguments` in each process of `plan`; the exit code that a single process would have.

    Where the rendezvous no longer answers, `on_lost_host` gets the error and this process exits at once:
    torch's calls to the rendezvous cannot be interrupted.

    Raises:
        MachineError: the hosts did not join the rendezvous, or its host was lost.
    """
    _set_environment(plan)
    killed_before = oom_kills()
    parameters = _rendezvous_parameters(plan)
    if not parameters.get_as_bool("is_host"):
        watch = (parameters.endpoint, on_lost_host)
        threading.Thread(target=_watch_rendezvous, args=watch, name="rendezvous", daemon=True).start()
    try:
        handler = rendezvous.get_rendezvous_handler(parameters)
        agent = Agent(_workers(plan, arguments, handler), DefaultLogsSpecs())
        agent.codes = {}
        with _forwarding_signals(agent.forward_signal):
            result = agent.run()
    except Exception as error:  # the agent raises its store's errors: time-outs, resets, closed rendezvous
        reason = str(error).partition("\n")[0] or type(error).__name__
        what = f"the rendezvous at {parameters.endpoint} failed ({type(error).__name__}: {reason})"
        raise MachineError(what, hint="check the first host's address, and that its port is open") from None
    with contextlib.suppress(Exception):
        handler.shutdown()
    if result is None:
        raise MachineError(
            "the rendezvous is closed", "it has enough hosts without this one", "use the same --nnodes on all hosts"
        )
    return exit_code(agent.codes, oom_kills() > killed_before) if result.is_failed() else 0


def _set_environment(plan: LaunchPlan) -> None:
    """Set what the agent and its workers read from the environment."""
    isolate_children()
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its errors are reported by `start`
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(max(available_cores() // plan.processes, 1))
    os.environ["BIGMODEL_LAUNCHER"] = str(os.getpid())
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # the others are handled by `start`


def _rendezvous_parameters(plan: LaunchPlan) -> RendezvousParameters:
    endpoint, local_address, is_host = _rendezvous_address(plan.endpoint)
    return RendezvousParameters(
        backend="c10d",
        endpoint=endpoint,
        run_id="bigmodel" if plan.endpoint else str(uuid.uuid4()),
        min_nodes=plan.min_hosts,
        max_nodes=plan.max_hosts,
        local_addr=local_address,
        is_host=is_host,
        last_call_timeout=LAST_CALL_SECONDS,
        keep_alive_interval=HEARTBEAT_SECONDS,
        read_timeout=4 * RENDEZVOUS_TIMEOUT,  # afterwards it can hang for ever: `_watch_rendezvous` acts before
    )


def _workers(plan: LaunchPlan, arguments: list[str], handler: RendezvousHandler) -> WorkerSpec:
    """The same command again, in each process."""
    return WorkerSpec(
        role="rank",
        local_world_size=plan.processes,
        entrypoint=sys.executable,
        args=("-m", "bigmodel_cli", *arguments),  # isolated by PYTHONSAFEPATH
        rdzv_handler=handler,
        max_restarts=plan.max_restarts,
        monitor_interval=0.1,
    )


def _rendezvous_address(endpoint: str | None) -> tuple[str, str, bool]:
    """The rendezvous endpoint, this host's address as seen from there, and whether this host serves the rendezvous.

    Raises:
        InputError: `endpoint` is not of the form host:port.
        MachineError: there is no route to it.
    """
    if endpoint is None:
        return "127.0.0.1:0", "127.0.0.1", True
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--rdzv {endpoint}", "expected HOST:PORT", "--rdzv 10.0.0.1:29500")
    try:
        address = socket.gethostbyname(host)
        local_address = local_address_to(address)
    except OSError as error:
        raise MachineError(f"--rdzv {endpoint}: {error.strerror or error}", hint="the first host's address") from None
    return f"{address}:{port}", local_address, local_address == address


def _watch_rendezvous(endpoint: str, on_lost_host: Callable[[MachineError], None]) -> None:
    """Exit this process, and with it its workers, once the rendezvous has not answered for RENDEZVOUS_TIMEOUT."""
    host, _, port = endpoint.rpartition(":")
    last_answer: float | None = None  # the first host may not be up yet
    while last_answer is None or time.monotonic() - last_answer < RENDEZVOUS_TIMEOUT:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=HEARTBEAT_SECONDS):
            last_answer = time.monotonic()
        time.sleep(HEARTBEAT_SECONDS)
    on_lost_host(
        MachineError(
            f"cut off from {endpoint}",
            f"it gave no answer for {RENDEZVOUS_TIMEOUT:.0f} s",
            "the first host, the network",
        )
    )
    os._exit(MachineError.exit_code)


def root_failures(codes: dict[int, int], signalled: bool, running: Collection[int] = ()) -> dict[int, int]:
    """`codes` without those of ranks that the agent stopped because another rank had failed.

    `running` are the ranks that ran until then. One that does not answer, being suspended, is killed in the end.
    """
    stopped = (*SIGNAL_CODES, -signal.SIGTERM)
    others = {rank: code for rank, code in codes.items() if code not in stopped and rank not in running}
    return codes if signalled or not others else others


def exit_code(codes: dict[int, int], out_of_memory: bool = False) -> int:
    """One exit code for the ranks' `codes`: final ones first, then a bug, then a failure of the machine.

    `out_of_memory`: whether the kernel ended a process for want of memory during the job.

    Raises:
        MachineError: a signal killed a rank, and no other rank failed by itself.
    """
    found = set(codes.values())
    for code in (*FINAL_CODES, 1):
        if code in found:
            return code
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    if killed:
        rank, number = next(iter(killed.items()))
        why = "; the kernel was out of memory" if number == KILL and out_of_memory else ""
        raise MachineError(
            f"rank {rank} was killed by {signal_name(number)}{why}",
            hint="bigmodel train --resume --out RUN; --max-restarts 3 resumes by itself",
        )
    return 3


@contextlib.contextmanager
def _forwarding_signals(forward: Callable[[int], None]) -> Iterator[None]:
    """Forward signals to the workers, which save and exit; this process then exits with their code."""

    def handle(number: int, frame: FrameType | None) -> None:
        forward(number)

    # One that is ignored, as SIGHUP under nohup, stays ignored.
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before: dict[Any, Any] = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
