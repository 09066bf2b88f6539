"""Two "hosts", network namespaces joined by a veth pair: they meet, lose a rank, are cut off from each other."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import figures
import pytest
from nursery import Child, Nursery
from test_launched import alive, ranks_of, wait_for

MODEL = ["train", "mlp", "--data", "digits", "--precision", "fp32", "--json", "--out", "run"]
MEETING = "10.93.0.1:29517"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    if shutil.which("ip") is None:
        pytest.skip("no `ip` command (iproute2)")
    names = (f"bigmodel-{os.getpid()}-a", f"bigmodel-{os.getpid()}-b")
    ends = (f"bm{os.getpid()}a"[:15], f"bm{os.getpid()}b"[:15])
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        for i, (name, end) in enumerate(zip(names, ends, strict=True)):
            ip("-n", name, "addr", "add", f"10.93.0.{i + 1}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (subprocess.CalledProcessError, OSError) as error:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20, check=False)
        pytest.skip(f"network namespaces are not permitted here ({error})")
    yield names
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20, check=False)


def start(nursery: Nursery, hosts: tuple[str, str], hosts_asked: str, *arguments: Any) -> tuple[Child, Child]:
    flags = ["--nproc", "1", "--nnodes", hosts_asked, "--rdzv", MEETING, "--max-restarts", "3", "--timeout", "10"]
    first, second = (nursery.start(*MODEL, *flags, *arguments, host=host) for host in hosts)
    return first, second


def ended(child: Child, seconds: float) -> int:
    end = time.monotonic() + seconds
    while child.running():
        assert time.monotonic() < end, f"it goes on and on: {child.error}"
        time.sleep(0.05)
    return child.wait()


def test_two_hosts_lose_a_rank_and_end_as_if_not(hosts: tuple[str, str], tmp_path: Path) -> None:
    """kill -9 a rank of the second host: both start again, and the digest is that of an undisturbed run."""
    steps = ["--epochs", "24", "--set", "train.eval_epochs=12", "--set", "train.save_steps=5"]
    with Nursery(tmp_path) as nursery:
        whole = nursery.start(*MODEL[:-1], "whole", *steps, "--nproc", "2")
        assert whole.wait() == 0, whole.error
        first, second = start(nursery, hosts, "2", *steps)
        wait_for(tmp_path / "run/last.pt", first)
        victim, sent = ranks_of(second)[0], time.monotonic()
        os.kill(victim, signal.SIGKILL)
        codes = (ended(first, 60), ended(second, 60))
        assert codes == (0, 0), (first.error, second.error)
        ends = [json.loads(c.out.read_text().splitlines()[-1]) for c in (whole, first, second) if c.out.read_text()]
        assert len(ends) == 2 and ends[0]["digest"] == ends[1]["digest"]  # one console of two
        assert first.out.read_text().count('"event": "start"') + second.out.read_text().count('"event": "start"') == 2
        assert ranks_of(first) == ranks_of(second) == []
    note = f"both hosts done {time.monotonic() - sent:.0f} s after the kill"
    figures.record("two hosts, SIGKILL of a rank, ended with the bits of an undisturbed run", 1, 0, note)


def test_a_host_that_is_cut_off_leaves_a_job_that_goes_on(hosts: tuple[str, str], tmp_path: Path) -> None:
    if not figures.SOAK:
        pytest.skip("a minute of waiting: under BIGMODEL_SOAK=1")
    with Nursery(tmp_path) as nursery:
        first, second = start(nursery, hosts, "1:2", "--epochs", "1000000", "--set", "train.save_steps=200")
        wait_for(tmp_path / "run/last.pt", first)
        end = time.monotonic() + 30
        while started(first, "2 processes") + started(second, "2 processes") == 0:  # alone first, joined then
            assert time.monotonic() < end, (first.error, second.error)
            time.sleep(0.1)
        time.sleep(1)
        ranks, cut, before = ranks_of(second), time.monotonic(), started(first, "")
        for name in hosts:
            ip("-n", name, "link", "set", f"bm{os.getpid()}{name[-1]}"[:15], "down")
        code = ended(second, 60)
        gone = time.monotonic() - cut
        assert code == 3 and not any(alive(rank) for rank in ranks), second.error
        while started(first, "") == before:
            assert time.monotonic() < cut + 60 and first.running(), first.error
            time.sleep(0.1)
        alone = time.monotonic() - cut
        assert "2 processes" not in first.out.read_text().splitlines()[-1]
        os.kill(first.pid, signal.SIGTERM)
        assert ended(first, 30) == 143, first.error
        assert ranks_of(first) == ranks_of(second) == []
    note = f"the job went on alone after {alone:.0f} s, the other host ended after {gone:.0f} s"
    figures.record("two hosts, one cut off", 1, 0, note)


def started(child: Child, what: str) -> int:
    """How often the ranks of `child` began to train, with `what` in the line that says so."""
    return sum('"event": "start"' in line and what in line for line in child.out.read_text().splitlines())


def test_the_host_that_is_met_at_is_found_by_its_address() -> None:
    from bigmodel_cli.engine.device.ranks import interface_with, local_address_to

    assert local_address_to("127.0.0.1") == "127.0.0.1" and interface_with("127.0.0.1") == "lo"
    assert interface_with("203.0.113.7") is None and re.fullmatch(r"[\d.]+", local_address_to("127.0.0.1"))
