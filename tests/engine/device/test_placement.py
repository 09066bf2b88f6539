"""Choosing a placement changes nothing in the process; configuring the process applies it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bigmodel_cli.core.recipe import PlacementSection
from bigmodel_cli.engine.device.placement import MAX_THREADS, choose_placement
from bigmodel_cli.engine.device.process import configure_process
from bigmodel_cli.engine.device.ranks import Ranks


def process_state() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn": torch.backends.cudnn.benchmark,
        "gc": gc.get_threshold(),
        "frozen": gc.get_freeze_count(),
        "environment": dict(os.environ),
    }


@pytest.fixture
def restored() -> Iterator[None]:
    before = process_state()
    yield
    torch.set_num_threads(before["threads"])
    torch.use_deterministic_algorithms(before["deterministic"])
    gc.set_threshold(*before["gc"])
    gc.unfreeze()


def test_choosing_changes_nothing_in_the_process() -> None:
    before = process_state()
    placement = choose_placement(PlacementSection(device="cpu", threads=3, deterministic=True))
    assert placement.threads == 3 and placement.deterministic
    after = process_state()
    assert after.pop("frozen") <= before.pop("frozen"), "what the tests have frozen may be freed meanwhile"
    assert after == before


def test_weights_of_five_dimensions_stay_as_they_are() -> None:
    """torch would move them too, and cannot: timm's lambda networks did not train."""
    placement = choose_placement(PlacementSection(device="cpu")).with_(channels_last=True)
    moved = placement.model(torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.Conv3d(1, 2, (3, 3, 1))))
    assert moved[1].weight.is_contiguous() and moved[1].weight.shape == (2, 1, 3, 3, 1)


def test_configuring_applies_threads_determinism_and_collection(restored: None) -> None:
    gc.set_threshold(50_000)
    configure_process(choose_placement(PlacementSection(device="cpu", threads=1, deterministic=True)))
    assert torch.get_num_threads() == 1 and torch.are_deterministic_algorithms_enabled()
    assert gc.get_threshold()[0] == 2_000 and gc.get_freeze_count() > 0
    configure_process(choose_placement(PlacementSection(device="cpu", threads=2)))
    assert torch.get_num_threads() == 2 and not torch.are_deterministic_algorithms_enabled()


def test_a_resumed_run_keeps_its_settings_and_the_recipe_takes_precedence() -> None:
    recorded = {"device": "cpu", "precision": "bf16", "channels_last": False, "compile": True, "threads": 5}
    placement = choose_placement(PlacementSection(device="cpu"), recorded)
    assert placement.choices() == {k: recorded[k] for k in recorded if k != "device"} | {"small_maps": True}
    assert choose_placement(PlacementSection(device="cpu", threads=2), recorded).threads == 2
    assert choose_placement(PlacementSection(device="cpu"), {**recorded, "device": "A100"}).precision == "fp32"


@pytest.mark.parametrize("threads", [0, -1, MAX_THREADS + 1, "4", True])
def test_recorded_settings_are_untrusted(threads: Any) -> None:
    default = choose_placement(PlacementSection(device="cpu"))
    assert (
        choose_placement(PlacementSection(device="cpu"), {"device": "cpu", "threads": threads}).threads
        == default.threads
    )


def test_the_ranks_of_a_host_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("bigmodel_cli.engine.device.placement.available_cores", lambda: 8)
    ranks = Ranks(rank=1, world=4, local_rank=1, local_world=4)
    assert choose_placement(PlacementSection(device="cpu"), ranks=ranks).threads == 2
    assert choose_placement(PlacementSection(device="cpu"), ranks=Ranks(local_world=64)).threads == 1
