"""Uneven classes: weighed in the loss or drawn equally often, the same for every resume, told to the person."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.data.balance import balanced_order, class_weights, describe_imbalance
from bigmodel_cli.data.batches import Batches
from bigmodel_cli.data.image.arrays import ImageArrays
from bigmodel_cli.engine.build.digest import digest
from bigmodel_cli.engine.training.assemble import assemble, execute
from bigmodel_cli.engine.training.loop import fit
from bigmodel_cli.engine.training.run import Hooks, Run

LABELS = torch.tensor([0] * 70 + [2] * 20 + [3] * 7)


def test_every_class_has_as_many_places_and_comes_whole_before_it_comes_again() -> None:
    order = balanced_order(LABELS, torch.Generator().manual_seed(1))
    assert len(order) == 97 and len(order.unique()) == 97
    assert sorted(Counter(LABELS[order % 97].tolist()).values()) == [32, 32, 33]
    times = Counter((order % 97).tolist())
    assert {times[i] for i in range(90, 97)} <= {4, 5} and {times[i] for i in range(70, 90)} <= {1, 2}
    assert {times[i] for i in range(70)} == {0, 1}
    firsts = [i for i in order.tolist() if 90 <= i < 97]
    assert sorted(firsts) == list(range(90, 97))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    source = ImageArrays(torch.zeros(97, 1, 2, 2, dtype=torch.uint8), LABELS, "train")
    batches = Batches(source, 16, 0, LABELS)
    assert torch.equal(batches.order(3), Batches(source, 32, 0, LABELS).order(3))
    assert not torch.equal(batches.order(3), batches.order(4))
    whole = [b["index"] for b in batches.steps(2)]
    assert torch.equal(torch.cat(whole[3:]), torch.cat([b["index"] for b in batches.steps(2, 3)]))
    assert all(torch.equal(b["label"], LABELS[b["index"] % 97]) for b in batches.steps(2))


def test_weights_even_the_classes_out_and_keep_the_mean() -> None:
    weights = class_weights(LABELS, 5)
    sums = torch.zeros(5).index_add(0, LABELS, weights[LABELS])
    assert sums[[0, 2, 3]].tolist() == pytest.approx([97 / 3] * 3) and weights[[1, 4]].tolist() == [0, 0]
    assert describe_imbalance([7, 70], ["0", "1"]) == "classes are imbalanced: 70 of '1' (91%), 7 of '0'"
    assert describe_imbalance([3, 5], "ab") is None


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine dark cats, three light dogs, and one of each to validate."""
    for split, name, count in (("train", "cat", 9), ("train", "dog", 3), ("val", "cat", 1), ("val", "dog", 1)):
        (tmp_path / "photos" / split / name).mkdir(parents=True)
        for j in range(count):
            Image.new("L", (16, 16), 12 * j + (128 if name == "dog" else 0)).save(
                tmp_path / "photos" / split / name / f"{j}.png"
            )
    return tmp_path / "photos"


def run_of(photos: Path, balance: str, resumed: Any = None, stop_at: int | None = None, **start: Any) -> Run:
    values = {
        "model": {"name": "mlp"},
        "data": {"name": "image_folder", "path": str(photos), "size": 14, "channels": 1},
        "train": {"balance": balance, "batch_size": 5, "epochs": 3},
        "start": start,
    }
    hooks = Hooks(should_stop=lambda run: run.progress.step == stop_at)
    return assemble(resolve([Layer("t", values)]).recipe, resumed, hooks=hooks)


@pytest.mark.parametrize("balance", ["loss", "sampling"])
def test_resumed_is_the_unbroken_run(balance: str, photos: Path) -> None:
    whole, broken = run_of(photos, balance), run_of(photos, balance, stop_at=4)
    remedy = {"loss": "the loss uses class weights", "sampling": "sampling is class-balanced"}[balance]
    assert any("9 of 'cat' (75%), 3 of 'dog'" in note and remedy in note for note in whole.notes)
    assert fit(whole)
    assert not fit(broken)
    resumed = run_of(photos, balance, broken.state())
    assert fit(resumed) and digest(resumed.model) == digest(whole.model) != digest(run_of(photos, "none").model)


def test_the_loss_is_weighed_in_training_alone(photos: Path) -> None:
    run, plain = run_of(photos, "loss"), run_of(photos, "none")
    assert any("--balance loss or --balance sampling" in note for note in plain.notes)
    batch = run.task.prepare(run.batches.source.gather(torch.arange(12)))
    each = torch.nn.functional.cross_entropy(run.model(batch["image"]), batch["label"], reduction="none")
    expected = (each * torch.tensor([12 / 18] * 9 + [2.0] * 3)).sum()
    torch.testing.assert_close(run.task.loss(run.model, batch).total, expected)
    torch.testing.assert_close(run.task.evaluate(run.model, batch)["loss"], each.sum())


def test_the_probe_weighs_too(photos: Path) -> None:
    heads = {}
    for balance in ("none", "loss", "sampling"):
        run = run_of(photos, balance, method="probe", strengths=[0.01])
        assert execute(run)
        heads[balance] = run.model.state_dict()
    last = [k for k in heads["none"] if k.endswith("bias")][-1]
    assert torch.equal(heads["loss"][last], heads["sampling"][last])
    assert not torch.equal(heads["loss"][last], heads["none"][last])


def test_data_without_classes_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("to be or not to be " * 20)
    values = {
        "model": {"name": "gpt-nano"},
        "data": {"name": "text_files", "path": str(tmp_path / "x.txt"), "context": 8},
        "train": {"balance": "sampling"},
    }
    with pytest.raises(InputError, match=r"train\.balance = sampling; expected data with one class per sample"):
        assemble(resolve([Layer("t", values)]).recipe)
