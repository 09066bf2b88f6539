"""Samples held on a device give the batches that their source gives. What a GPU copies by itself needs one to test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipes import small_recipe

from bigmodel_cli.core.recipe import PlacementSection
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.build.data import load_data, train_and_val
from bigmodel_cli.engine.device import device_cache as subject
from bigmodel_cli.engine.device.device_cache import Pinned, Resident, cache_on_device, load_resident
from bigmodel_cli.engine.device.placement import Placement, choose_placement
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.closed_form import solve_model


def split() -> Any:
    section = resolve([Layer("test", {"model": {"name": "mlp"}, "data": {"name": "digits"}})]).recipe.data
    return train_and_val(load_data(section), section)[0]


def test_held_batches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "CHUNK_SAMPLES", 100)
    source = split()
    held = load_resident(source, torch.device("cpu"))
    assert held is not None
    indices = torch.tensor([5, 0, 1000, 5])
    for key, value in source.gather(indices).items():
        assert torch.equal(held.gather(indices)[key], value)
    assert len(held) == len(source) and held.name(7) == source.name(7)


def test_a_cpu_is_near_already_and_a_small_gpu_gets_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    source, placement = split(), choose_placement(PlacementSection())
    if placement.device.type == "cpu":
        assert cache_on_device(source, placement) is source
    for free, kind in ((10**9, Resident), (1000, Pinned)):
        monkeypatch.setattr(Placement, "memory_free", lambda self, free=free: free)
        assert type(cache_on_device(source, placement)) is kind


def test_pairs_of_different_lengths_are_not_padded_to_the_longest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Placement, "memory_free", lambda self: 10**9)
    section = small_recipe(tmp_path, "transformer").data
    source = train_and_val(load_data(section), section)[0]
    kept = cache_on_device(source, choose_placement(PlacementSection()))
    assert isinstance(kept, Pinned) and torch.equal(kept.lengths, source.lengths)


@pytest.mark.parametrize(("model", "options"), (("ease", {}), ("mf", {"solver": "als"}), ("mf", {"solver": "gibbs"})))
def test_models_that_are_solved_for_read_the_split_on_the_host(
    model: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A held split gathers tensors of the device, and once had no histories: `train ease` ended with an assertion."""
    if "solver" in options:
        options = {**options, "sweeps": 3, "burn_in": 1, "samples": 2}
    monkeypatch.setattr(Placement, "memory_free", lambda self: 10**9)
    monkeypatch.setattr(Resident, "gather", lambda self, indices: pytest.fail("solved from the device's copy"))
    data = {"name": "synthetic_interactions", "users": 60, "items": 40, "length": 12}
    run = assemble(small_recipe(tmp_path, model, model=options, data=data), measure=False)
    assert isinstance(run.batches.source, Resident)
    monkeypatch.setattr("bigmodel_cli.engine.training.closed_form.end_epoch", lambda run, rate: True)
    assert solve_model(run)
