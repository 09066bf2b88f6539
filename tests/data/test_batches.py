"""Which samples make a step: each once an epoch, and of texts those of about one length."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.core.types import Batch
from bigmodel_cli.data.batches import Batches


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
