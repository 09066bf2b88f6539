"""Folds: each sample is held out once, classes are spread evenly, groups stay together; scikit-learn is the oracle."""

from __future__ import annotations

import numpy
import pytest
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.types import Batch
from bigmodel_cli.data.folds import fold_of_each, hold_out, rare_classes
from bigmodel_cli.data.subset import Subset, carve
from bigmodel_cli.data.targets import Targets


class Samples:
    """Labels, and perhaps groups."""

    def __init__(self, labels: Tensor, groups: Tensor | None = None) -> None:
        self.labels = labels
        if groups is not None:
            self.groups = groups

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: Tensor) -> Batch:
        return {"label": self.labels[indices], "index": indices}

    def name(self, index: int) -> str:
        return str(index)


def labels(count: int) -> Tensor:
    return torch.from_numpy(numpy.random.default_rng(0).choice(3, count, p=[0.7, 0.2, 0.1]))


def test_each_sample_is_held_out_once_and_classes_are_even() -> None:
    source = Samples(labels(203))
    train, val = carve(source, 0.1, 0)
    held = [hold_out(train, 5, fold, 0) for fold in range(1, 6)]
    everywhere = torch.cat([part.indices for _, part in held])
    assert sorted(everywhere.tolist()) == sorted(train.indices.tolist()) and isinstance(held[0][1].source, Samples)
    for rest, part in held:
        assert not set(rest.indices.tolist()) & {*part.indices.tolist(), *val.indices.tolist()}
    counts = torch.stack([torch.bincount(part.labels, minlength=3) for _, part in held])
    assert (counts.max(0).values - counts.min(0).values <= 1).all()
    oracle = StratifiedKFold(5, shuffle=True, random_state=0).split(train.labels, train.labels)
    for (_, part), (_, places) in zip(held, oracle, strict=True):
        assert part.indices.tolist() == train.indices[torch.from_numpy(places)].tolist()
    assert not torch.equal(fold_of_each(train, 5, 0), fold_of_each(train, 5, 1))


def test_a_group_is_in_one_fold_and_its_classes_are_spread() -> None:
    groups = torch.arange(300) // 6
    source = Samples(labels(300), groups)
    train = carve(source, 0.1, 0)[0]
    fold = fold_of_each(train, 4, 0)
    of_samples = groups[train.indices]
    assert all(len(fold[of_samples == group].unique()) == 1 for group in of_samples.unique())
    shares = torch.stack([(train.labels[fold == k] == 0).float().mean() for k in range(4)])
    assert shares.max() - shares.min() < 0.1, shares


def test_numbers_are_spread_and_what_cannot_be_folded_is_refused() -> None:
    numbers = Targets(Samples(torch.arange(100)), torch.linspace(0, 1, 100)[:, None])
    means = [float(hold_out(numbers, 5, k, 0)[1].label_values.mean()) for k in range(1, 6)]
    assert max(means) - min(means) < 0.06, means
    one = Samples(torch.zeros(10, dtype=torch.int64), torch.arange(10) // 5)
    with pytest.raises(InputError, match="at most 2, the groups"):
        fold_of_each(one, 3, 0)
    with pytest.raises(InputError, match=r"data.hold_out = 4"):
        hold_out(one, 2, 4, 0)
    few = Samples(torch.tensor([0, 1] + [2] * 20))
    assert rare_classes(few, 3) == [0, 1] and sorted(fold_of_each(few, 3, 0).bincount().tolist()) == [7, 7, 8]
    with pytest.raises(InputError, match="without labels"):
        fold_of_each(Subset(Unlabelled(), torch.arange(9)), 3, 0)


class Unlabelled:
    def __len__(self) -> int:
        return 9

    def gather(self, indices: Tensor) -> Batch:
        return {"index": indices}

    def name(self, index: int) -> str:
        return str(index)
