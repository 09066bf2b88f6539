"""The stopwatch's shares and verdict, and the trace of ``--profile``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.engine.training.timer import SAMPLED, Timer


def test_shares_are_of_what_was_timed_and_the_verdict_names_the_largest() -> None:
    watch = Timer()
    for part, seconds in (("data", 0.08), ("forward", 0.01), ("backward", 0.01)):
        with watch(part):
            time.sleep(seconds)
    shares = watch.shares()
    assert next(iter(shares)) == "data" and sum(shares.values()) == pytest.approx(1)
    assert "cores" in watch.verdict()
    watch.seconds["backward"] = 10.0
    assert "a faster device" in watch.verdict()
    assert Timer().verdict() == ""


def test_waiting_counts_the_time_until_an_item() -> None:
    watch = Timer()

    def slow() -> Any:
        for i in range(3):
            time.sleep(0.02)
            yield i

    seen = []
    for item in watch.waiting("data", slow()):
        time.sleep(0.05)  # what is done with an item is another part
        seen.append(item)
    assert seen == [0, 1, 2]
    assert 0.06 <= watch.seconds["data"] < 0.15


def test_a_device_is_waited_for_on_some_steps_alone() -> None:
    waits: list[int] = []
    watch = Timer(lambda: waits.append(1))
    for watch.steps in range(2 * SAMPLED):
        with watch("forward"):
            pass
    assert len(waits) == 4  # before and after, twice


@pytest.mark.parametrize("steps", [20, 4])
def test_profile_writes_a_trace_with_the_parts_by_name(run_cli: Any, tmp_path: Path, steps: int) -> None:
    done = run_cli("train", "mlp", "--data", "digits", "--max-steps", steps, "--profile", "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    events = json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"forward", "backward", "optimizer", "aten::addmm"} <= names
    assert "trace.json" in done.stdout
