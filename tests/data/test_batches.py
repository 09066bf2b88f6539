"""Which samples make a step: each once an epoch, and of texts those of about one length."""

from __future__ import annotations

import itertools
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bigmodel_cli.core.types import Batch
from bigmodel_cli.data import batches as batches_module
from bigmodel_cli.data.batches import Batches, gather_ahead, in_order, micro_batches, shard_batches


class Texts:
    """Samples that are nothing but their lengths."""

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def gather(self, indices: Tensor) -> Batch:
        return {"length": self.lengths[indices], "index": indices}

    def name(self, index: int) -> str:
        return str(index)


def fill(batches: Batches, epoch: int) -> float:
    """The share of a padded epoch that is fill."""
    steps = [raw["length"] for raw in batches.steps(epoch)]
    return 1 - sum(int(s.sum()) for s in steps) / sum(int(s.max()) * len(s) for s in steps)


def test_steps_of_texts_are_alike_in_length_and_every_text_comes_once() -> None:
    lengths = torch.randint(1, 40, (1001,), generator=torch.Generator().manual_seed(0))
    batches = Batches(Texts(lengths), 16, seed=3)
    steps = [raw["index"] for raw in batches.steps(0)]
    assert sorted(torch.cat(steps).tolist()) == list(range(1001))
    assert {len(s) for s in steps} == {15, 16} and len(steps) == batches.steps_per_epoch == 63
    shuffled = torch.randperm(1001).split(16)
    by_chance = 1 - 1001 * float(lengths.float().mean()) / sum(int(lengths[s].max()) * len(s) for s in shuffled)
    assert fill(batches, 0) < 0.1 < 0.4 < by_chance
    again, other = Batches(Texts(lengths), 16, seed=3), batches.order(1)
    assert torch.equal(again.order(0), batches.order(0)) and not torch.equal(other, batches.order(0))


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 33])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_step_is_a_single_sample_unless_that_is_asked_for(samples: int, size: int) -> None:
    batches = Batches(Texts(torch.ones(samples, dtype=torch.int64)), size, seed=0)
    sizes = [len(raw["index"]) for raw in batches.steps(0)]
    assert sum(sizes) == samples and [batches.size(i) for i in range(len(sizes))] == sizes
    assert min(sizes) > 1 or 1 in (samples, size)


def test_the_lengths_of_steps_do_not_climb_through_an_epoch() -> None:
    """A pool is sorted, its steps are not: else a run would end each epoch on its longest texts."""
    batches = Batches(Texts(torch.arange(1000) % 50 + 1), 10, seed=0)
    means = torch.tensor([float(raw["length"].float().mean()) for raw in batches.steps(0)])
    place = torch.arange(len(means)).float()
    assert abs(torch.corrcoef(torch.stack((means, place)))[0, 1]) < 0.3


def test_a_resumed_epoch_goes_on_with_the_same_steps() -> None:
    batches = Batches(Texts(torch.randint(1, 9, (100,))), 8, seed=1)
    whole = [raw["index"].tolist() for raw in batches.steps(2)]
    assert [raw["index"].tolist() for raw in batches.steps(2, 5)] == whole[5:]


class Slow(Texts):
    """Gathers in `seconds` by a clock of its own, and notes in which thread."""

    def __init__(self, lengths: Tensor, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(lengths)
        self.seconds, self.now = seconds, 0.0
        self.threads: list[str] = []
        monkeypatch.setattr(batches_module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def gather(self, indices: Tensor) -> Batch:
        self.threads.append(threading.current_thread().name)
        self.now += self.seconds
        return super().gather(indices)


@pytest.mark.parametrize(("seconds", "here"), [(0, 9), (0.0005, 9), (0.004, 4), (0.005, 3), (0.02, 1)])
def test_all_batches_come_in_order_whoever_gathers_them(
    seconds: float, here: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes a millisecond is gathered here; what takes longer in one thread, once 10 ms were lost by it."""
    source = Slow(torch.arange(60), seconds, monkeypatch)
    taken = []
    for raw in in_order(source, 7):
        taken.append(raw["index"])
        if len(taken) == 7 and here < 7:
            deadline = time.monotonic() + 10
            while len(source.threads) < 8 and time.monotonic() < deadline:
                time.sleep(0.001)
            assert len(source.threads) == 8  # the next one is gathered while this one is in use, and no more
    assert torch.equal(torch.cat(taken), torch.arange(60)) and [len(t) for t in taken] == [7] * 8 + [4]
    mine = threading.current_thread().name
    assert [name == mine for name in source.threads] == [True] * here + [False] * (9 - here)
    assert len(set(source.threads) - {mine}) == (here < 9)


def test_now_and_then_a_late_batch_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Slow(torch.arange(100), 0, monkeypatch)
    for n, _ in enumerate(in_order(source, 1)):
        source.seconds = 0.006 if n % 10 == 9 else 0
    assert set(source.threads) == {threading.current_thread().name}


def test_nothing_to_gather_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(gather_ahead(Texts(torch.arange(3)), [])) == []
    slow = Slow(torch.arange(3), 0.02, monkeypatch)
    assert [len(raw["index"]) for raw in gather_ahead(slow, [torch.arange(2)])] == [2]


@pytest.mark.parametrize(("samples", "batch_size"), [(100, 8), (101, 10), (7, 7), (7, 100), (1, 1)])
def test_sizes_are_those_of_the_steps(samples: int, batch_size: int) -> None:
    batches = Batches(Texts(torch.ones(samples)), batch_size, seed=0)
    steps = [len(raw["index"]) for raw in batches.steps(0)]
    assert [batches.size(i) for i in range(batches.steps_per_epoch)] == steps and sum(steps) == samples
    assert max(steps) <= batch_size and max(steps) - min(steps) <= 1


def test_the_parts_of_all_shards_are_the_step_of_one() -> None:
    lengths = torch.randint(1, 9, (101,), generator=torch.Generator().manual_seed(4))
    whole = [raw["index"] for raw in Batches(Texts(lengths), 10, seed=5).steps(1)]
    parts = [[raw["index"] for raw in Batches(Texts(lengths), 10, 5, None, k, 3).steps(1)] for k in range(3)]
    assert len(whole) == 11 == len(parts[0])
    for step, cut in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(cut), step) and max(map(len, cut)) - min(map(len, cut)) <= 1


@pytest.mark.parametrize(("samples", "batch_size", "shards"), [(10, 2, 3), (101, 8, 2), (3, 4, 4), (5, 1, 1)])
def test_an_evaluation_has_each_sample_in_one_shard(samples: int, batch_size: int, shards: int) -> None:
    found = [shard_batches(samples, batch_size, k, shards) for k in range(shards)]
    assert len({len(batches) for batches in found}) == 1  # else one rank would wait for the others for ever
    assert sorted(int(i) for batches in found for part in batches for i in part) == list(range(samples))
    assert all(len(part) <= batch_size for batches in found for part in batches)


@pytest.mark.parametrize(
    ("size", "pieces", "sizes"), [(10, 1, [10]), (10, 3, [4, 3, 3]), (2, 5, [1, 1]), (6, 6, [1] * 6)]
)
def test_micro_batches_are_nearly_equal_and_the_last_is_told(size: int, pieces: int, sizes: list[int]) -> None:
    batch = {"x": torch.arange(size * 2).view(size, 2), "index": torch.arange(size)}
    found = list(micro_batches(batch, pieces))
    assert [len(b["index"]) for b, _ in found] == sizes and [last for _, last in found] == [False] * (
        len(sizes) - 1
    ) + [True]
    for key, value in batch.items():
        assert torch.equal(torch.cat([b[key] for b, _ in found]), value)


def test_epochs_and_seeds_that_add_up_alike_have_orders_of_their_own() -> None:
    orders = {
        tuple(Batches(Texts(torch.ones(50)), 10, seed).order(epoch).tolist())
        for seed in (0, 1, 2)
        for epoch in (0, 1, 2)
    }
    assert len(orders) == 9


def test_the_longer_steps_of_an_epoch_come_first() -> None:
    """As `size` says; else the pieces of a step would be cut in other places than its samples."""
    batches = Batches(Texts(torch.arange(103) % 9 + 1), 10, seed=2)
    alike = [set(raw["length"].tolist()) for raw in batches.steps(0)]
    assert max(map(len, alike)) <= 2  # of nine lengths: no step reaches into its neighbour's samples


def test_classes_evened_out_are_drawn_again_from_the_same_samples() -> None:
    source = Texts(torch.arange(12))
    labels = torch.tensor([0] * 10 + [1] * 2)
    batches = Batches(source, 4, 0, balance_labels=labels)
    drawn = torch.cat([raw["length"] for raw in batches.steps(0)])
    assert len(drawn) == 12 and labels[drawn].bincount().tolist() == [6, 6]


def test_a_source_that_is_read_in_turn_has_an_order_of_its_own() -> None:
    class Shards(Texts):
        def order(self, generator: torch.Generator, steps: int) -> Tensor:
            return torch.arange(len(self)).roll(int(torch.randint(1, 9, (), generator=generator)) + 10 * steps)

    batches = Batches(Shards(torch.arange(100) % 7), 11, seed=0)
    first, again, second = (batches.order(epoch) for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert len({(k - j) % 100 for j, k in itertools.pairwise(first.tolist())}) == 1  # turned, not mixed
    assert first[0] in [(100 - n) % 100 for n in range(1, 9)]  # of ten steps
