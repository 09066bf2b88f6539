"""The digits set, and validation carved from train."""

from pathlib import Path

import pytest
import torch

from bigmodel_cli.core.registry import data
from bigmodel_cli.data.image.arrays import ImageArrays
from bigmodel_cli.data.subset import Subset, carve


def whole(source):
    return source.gather(torch.arange(len(source)))


def labelled(counts):
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    return ImageArrays(torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1), labels, "train")


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    bundle = data.get("digits")(Path("unused"))
    train, test = (whole(bundle.load[split]()) for split in ("train", "test"))
    assert train["image"].dtype == torch.uint8 and train["image"].shape[1:] == (1, 8, 8)
    assert train["label"].dtype == torch.int64 and len(train["label"]) + len(test["label"]) == 1797
    rows = torch.cat([train["image"], test["image"]]).flatten(1).float().mul(16 / 255).round().long()
    seen = sorted((*row, label) for row, label in zip(rows.tolist(), [*train["label"], *test["label"]], strict=True))
    official = load_digits()
    expected = zip(official.data.astype(int).tolist(), official.target.tolist(), strict=True)
    assert [tuple(map(int, row)) for row in seen] == sorted((*row, label) for row, label in expected)


def test_digits_test_split_is_fixed_and_holds_a_fifth_of_every_class():
    first, second = (data.get("digits")(Path("x")).load["test"]() for _ in range(2))
    assert torch.equal(whole(first)["image"], whole(second)["image"])
    counts = first.labels.bincount(minlength=10)
    assert counts.min() >= 33 and counts.max() <= 38 and abs(len(first) - 1797 / 5) <= 2
    assert first.name(17) == "test[17]"


def test_samples_per_class_limits_train_alone():
    limited = data.get("digits")(Path("x"), samples_per_class=100)
    assert limited.load["train"]().labels.bincount().tolist() == [100] * 10
    full = data.get("digits")(Path("x"))
    assert torch.equal(whole(full.load["test"]())["image"], whole(limited.load["test"]())["image"])


def test_carve_is_disjoint_complete_and_stratified():
    source = labelled([100, 50, 20, 10])
    train, val = carve(source, 0.1, seed=3)
    chosen = torch.cat([train.indices, val.indices])
    assert sorted(chosen.tolist()) == list(range(180))
    assert whole(val)["label"].bincount().tolist() == [10, 5, 2, 1]


def test_carve_depends_on_the_seed_alone():
    source = labelled([100, 100])
    assert torch.equal(carve(source, 0.2, 1)[1].indices, carve(source, 0.2, 1)[1].indices)
    assert not torch.equal(carve(source, 0.2, 1)[1].indices, carve(source, 0.2, 2)[1].indices)


def test_carve_always_gives_both_parts():
    for counts in ([2], [1, 1], [5], [3, 1]):
        train, val = carve(labelled(counts), 0.1, 0)
        assert len(train) and len(val), counts


def test_subset_gathers_by_its_own_places_and_keeps_the_names():
    source = labelled([6, 4])
    subset = Subset(source, torch.tensor([7, 2, 5]))
    batch = subset.gather(torch.tensor([2, 0]))
    assert batch["index"].tolist() == [2, 0]
    assert batch["image"].flatten().tolist() == [5, 7] and batch["label"].tolist() == [0, 1]
    assert subset.name(0) == "train[7]"


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_carve_without_labels_takes_its_share(fraction):
    class Plain:
        def __len__(self):
            return 40

        def gather(self, indices):
            return {"index": indices}

        def name(self, index):
            return str(index)

    train, val = carve(Plain(), fraction, 0)
    assert len(val) == 40 * fraction and not set(train.indices.tolist()) & set(val.indices.tolist())
