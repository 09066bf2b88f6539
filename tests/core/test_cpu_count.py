"""How many cores a process may use, with and without an operating system that restricts it."""

import os

import pytest

from bigmodel_cli.core.processes import cgroups
from bigmodel_cli.core.processes.cpu_count import available_cores


def test_only_the_cores_this_process_may_run_on_are_counted() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert available_cores() == len(allowed)


def test_systems_without_affinity_count_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "cpu_limit", lambda: None)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)  # it may be unknown
    assert available_cores() == 1
