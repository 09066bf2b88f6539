"""The digits set, and validation carved from train."""

from pathlib import Path

import pytest
import torch

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.splits import name_hash
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


def test_every_class_is_on_both_sides_or_named():
    for counts in ([2], [5], [3, 2], [500, 2, 4]):
        for source in (labelled(counts), Named(counts)):
            sides = [whole(side)["label"].bincount(minlength=len(counts)) for side in carve(source, 0.1, 0)]
            assert all(side.min() >= 1 for side in sides) and torch.equal(sum(sides), torch.tensor(counts))
    for counts in ([1, 1], [3, 1], [1]):
        for source in (labelled(counts), Named(counts)):
            with pytest.raises(InputError, match="too few samples"):
                carve(source, 0.1, 0)


class Named(ImageArrays):
    """Samples with names, or in groups of `size`."""

    def __init__(self, counts, first=0, size=1):
        plain = labelled(counts)
        super().__init__(plain.images, plain.labels, "train")
        names = [f"{int(k)}/{(first + i) // size}" for i, k in enumerate(plain.labels)]
        object.__setattr__(self, "groups", torch.tensor([name_hash(name) for name in names]))


@pytest.mark.parametrize("counts", [[60, 60], [300], [4, 100]])
def test_no_train_sample_moves_to_val_when_samples_come(counts):
    """The hash decides, so it does so in any order and beside any other samples."""
    before = Named(counts)
    grown = Named([n + 40 for n in counts])
    sides = [
        {int(source.groups[i]) for i in val.indices}
        for source, (_, val) in ((before, carve(before, 0.1, 0)), (grown, carve(grown, 0.1, 0)))
    ]
    was_train = set(before.groups.tolist()) - sides[0]
    assert not was_train & sides[1]


def test_the_share_is_near_the_fraction_and_another_seed_chooses_others():
    source = Named([5000, 5000])
    chosen = [carve(source, 0.1, seed)[1].indices for seed in (0, 1)]
    assert all(abs(len(val) - 1000) < 150 for val in chosen)  # five standard deviations
    assert len(set(chosen[0].tolist()) & set(chosen[1].tolist())) < 200


def test_a_group_is_on_one_side():
    source = Named([400, 400], size=8)
    train, val = carve(source, 0.2, 0)
    assert not set(source.groups[train.indices].tolist()) & set(source.groups[val.indices].tolist())
    assert len(val) % 8 == 0 and len(val)


def test_earlier_versions_shuffled():
    """The split of old checkpoints, which are resumed and evaluated with it: as version 0.1 made it."""
    train, val = carve(labelled([40, 20]), 0.1, 7, "shuffle")
    generator = torch.Generator().manual_seed(7)
    expected = sorted([*torch.randperm(40, generator=generator)[:4].tolist(),
                       *(40 + torch.randperm(20, generator=generator)[:2]).tolist()])  # fmt: skip
    assert val.indices.tolist() == expected and len(train) == 54


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
