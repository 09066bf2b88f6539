"""Ranks are read from whatever started the process."""

from __future__ import annotations

from typing import Any

import pytest

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.engine.device.ranks import first_host, read_ranks

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1"}
SLURM = {"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}
SLURM |= {"SLURM_JOB_ID": "4711", "SLURM_STEP_NODELIST": "gpu[07-08]"}
PYTORCHJOB = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "big-master-0",
    "MASTER_PORT": "23456",
    "BIGMODEL_JOB": "b",
}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, (0, 1, 0, 1, "127.0.0.1", 29_500)),
        (TORCHRUN, (5, 8, 1, 4, "10.0.0.1", 29_500)),
        (SLURM, (9, 16, 1, 8, "gpu07", 24_711)),
        ({**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "1"}, (9, 16, 1, 8, "head", 1)),
        # In the batch script itself, outside srun: no rank.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "1"}, (0, 1, 0, 1, "127.0.0.1", 29_500)),
        (PYTORCHJOB, (1, 2, 0, 1, "big-master-0", 23_456)),
    ],
)
def test_ranks(env: dict[str, str], expected: tuple[Any, ...]) -> None:
    found = read_ranks(env)
    assert (found.rank, found.world, found.local_rank, found.local_world, found.address, found.port) == expected


def test_jobs_are_told_apart() -> None:
    assert read_ranks(SLURM).job == "slurm-4711" and read_ranks(PYTORCHJOB).job == "b"
    assert read_ranks(TORCHRUN).job == read_ranks(TORCHRUN).job != ""


@pytest.mark.parametrize("env", [{**TORCHRUN, "RANK": "8"}, {**TORCHRUN, "WORLD_SIZE": "many"}])
def test_an_environment_that_contradicts_itself(env: dict[str, str]) -> None:
    with pytest.raises(InputError):
        read_ranks(env)


def test_first_host() -> None:
    for nodes, first in {"a": "a", "a,b": "a", "n[3,5-7],x": "n3", "n[010-012]": "n010", "": ""}.items():
        assert first_host(nodes) == first
