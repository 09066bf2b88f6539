"""This process's rank in its job, from the environment that torchrun, Slurm or Kubernetes set. Imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.core.errors import InputError

ATTEMPT_VARIABLE = "BIGMODEL_ROUND"
"""The environment variable that names one start of a job's workers."""
BASE_PORT = 20_000  # a Slurm job's port is this plus the job id modulo this


@dataclass(frozen=True)
class Ranks:
    """This process is `rank` of `world` in the job, and `local_rank` of `local_world` on this host."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = "127.0.0.1"
    """The rendezvous address; `port` is its port."""
    port: int = 29_500
    round: str = ""
    """Identifies one start of the workers: the same on every rank, different after a restart."""
    job: str = ""
    """Identifies the job: the same after a restart, different in the next job."""


SINGLE_PROCESS = Ranks()


def read_ranks(env: Mapping[str, str] = os.environ) -> Ranks:
    """This process's ranks; those of a single process where no launcher set any.

    Raises:
        InputError: the environment contradicts itself.
    """
    if "RANK" in env and "WORLD_SIZE" in env:  # torchrun, our own launcher, a PyTorchJob
        found = _read(env, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif "SLURM_STEP_NUM_TASKS" in env:  # inside srun only: the batch script itself is not a rank
        # Such as "8(x4)" or "8(x3),4": the first number is close enough to divide a host's cores by.
        local_count = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", ""))
        env = {**env, "SLURM_TASKS_HERE": local_count[0] if local_count else ""}
        found = _read(env, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_TASKS_HERE")
    else:
        return Ranks()
    rank, world, local_rank, local_world = found
    if not 0 <= rank < world:
        raise InputError(f"rank {rank} of {world}", "expected a rank below the number of processes")
    address = env.get("MASTER_ADDR") or first_host(env.get("SLURM_STEP_NODELIST", "")) or "127.0.0.1"
    job = _number(env, "SLURM_JOB_ID", 0)
    port = _number(env, "MASTER_PORT", BASE_PORT + job % BASE_PORT if job else 29_500)
    start = env.get(ATTEMPT_VARIABLE) or env.get("TORCHELASTIC_RESTART_COUNT") or "0"
    return Ranks(rank, world, local_rank, local_world, address, port, start, job_id(env))


def _read(env: Mapping[str, str], rank: str, world: str, local_rank: str, local_world: str) -> tuple[int, ...]:
    return _number(env, rank, 0), _number(env, world, 1), _number(env, local_rank, 0), _number(env, local_world, 1)


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name}={text!r} in the environment", "expected a number") from None


def first_host(nodes: str) -> str:
    """The first host of a Slurm list: ``gpu[07-09,12],login`` is ``gpu07``."""
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?", nodes)
    return found[1] + (found[2] or "") if found else ""


def local_address_to(destination: str) -> str:
    """The local address that a packet to `destination` would be sent from; nothing is sent.

    Raises:
        OSError: there is no route.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((destination, 9))
        return str(probe.getsockname()[0])


def interface_with(address: str) -> str | None:
    """The name of the network interface with `address` (Linux)."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None

    get_address = 0x8915  # SIOCGIFADDR, linux/sockios.h
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), get_address, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def job_id(env: Mapping[str, str] = os.environ) -> str:
    """The id of this job: BIGMODEL_JOB, else Slurm's job id, else the parent process and its start time.

    Workers that an elastic agent restarts have the same parent, and no other job has it.
    """
    if env.get("BIGMODEL_JOB"):
        return env["BIGMODEL_JOB"]
    if env.get("SLURM_JOB_ID"):
        return f"slurm-{env['SLURM_JOB_ID']}"
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = "0"
    return f"{socket.gethostname()}-{parent}-{started}"


def die_with_launcher() -> None:
    """Have the kernel kill this worker when its launcher dies, so that no orphan is left."""
    launcher = os.environ.get("BIGMODEL_LAUNCHER", "")
    if sys.platform == "linux" and launcher.isdigit():
        parent_death_signal = 1  # linux/prctl.h
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
        if os.getppid() != int(launcher):  # it died before prctl
            os.kill(os.getpid(), signal.SIGKILL)
