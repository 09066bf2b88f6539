"""What classifiers of images and of text share, against scikit-learn and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle
from torch.nn import functional as F

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.specs import TextSpec
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.tasks import labelled
from bigmodel_cli.tasks.image_classification import image_classification
from bigmodel_cli.tasks.multi_label_classification import multi_label_classification
from bigmodel_cli.tasks.text_classification import text_classification

NAMES = ["a", "b", "c", "d"]
SPEC = TextSpec("char", tuple("ab"), 4, tuple(NAMES))


def batch(labels: list[int]) -> dict[str, torch.Tensor]:
    return {"label": torch.tensor(labels), "index": torch.arange(len(labels)) + 100}


def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def test_labels_follow_their_names() -> None:
    assert labelled.label_map(NAMES, NAMES) is None and labelled.label_map(tuple(NAMES), list(NAMES)) is None
    assert labelled.label_map(NAMES, ["c", "z", "a"]) == (2, -1, 0)
    assert labelled.label_map(NAMES, ["a", "b", "c"]) == (0, 1, 2)  # fewer are not the same


def test_sums_over_batches_give_scikit_learns_figures() -> None:
    """Samples of an unseen class (-1) are in no figure, also where their largest logit is any class's."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=generator) * 2
    labels = torch.randint(-1, 4, (50,), generator=generator).tolist()
    totals: dict[str, float] = {}
    for part in torch.arange(50).split(16):
        out = labelled.outputs(logits[part], batch([labels[i] for i in part]), losses, SPEC)
        for name, value in labelled.sums(out).items():
            totals[name] = totals.get(name, 0) + float(value)
    found = labelled.summarise(totals)
    seen = [i for i, label in enumerate(labels) if label >= 0]
    true, probability = [labels[i] for i in seen], logits[seen].softmax(1).numpy()
    assert 30 < len(seen) < 50 and totals["count"] == len(seen)
    assert found == pytest.approx({
        "loss": oracle.log_loss(true, probability, labels=range(4)),
        "accuracy": oracle.accuracy_score(true, probability.argmax(1)),
    })  # fmt: skip


@pytest.mark.parametrize("found", [torch.randn(2, 5), torch.randn(2, 3), torch.randn(2, 4, 7), (torch.randn(2, 4),)])
def test_a_head_of_another_width_is_refused_wherever_the_model_is_asked(found: Any) -> None:
    """Of a wider one nothing else would tell, and a narrower one would have no loss for some labels."""
    images = image_classification(ImageSpec(1, 8, 8, tuple(NAMES)), losses, lambda x, *_: x)
    of_labels = multi_label_classification(images.spec, losses, images.augment)
    texts = text_classification(SPEC, losses, images.augment)
    for task, inputs in ((images, torch.zeros(2, 1, 8, 8)), (of_labels, torch.zeros(2, 1, 8, 8)), (texts, None)):
        given = {**batch([0, 1]), task.inputs[0]: inputs}
        for ask in (task.loss, task.outputs, task.predict):
            with pytest.raises(InputError, match="the data has 4 classes"):
                ask(lambda _: found, given)
    assert images.loss(lambda _: torch.zeros(2, 4), {**batch([0, 1]), "image": None}).total > 0


def test_nothing_but_unseen_classes_is_no_figure_and_no_division_by_zero() -> None:
    out = labelled.outputs(torch.randn(3, 4), batch([-1, -1, -1]), losses, SPEC)
    assert labelled.summarise({k: float(v) for k, v in labelled.sums(out).items()}) == {"loss": 0, "accuracy": 0}


def test_what_reports_get_is_in_single_precision_and_keeps_label_and_index() -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0, 0.0], [0.0, 3.0, 0.0, 1.0]], dtype=torch.bfloat16)
    seen: list[Any] = []

    def loss(given: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append((given.dtype, labels.tolist()))
        return losses(given, labels)

    out = labelled.outputs(logits, batch([-1, 1]), loss, SPEC)
    assert seen == [(torch.float32, [0, 1])]  # a loss cannot index with -1
    assert set(out) == {"logits", "loss", "label", "index"} and out["logits"].dtype == torch.float32
    assert out["label"].tolist() == [-1, 1] and out["index"].tolist() == [100, 101] and out["loss"].shape == (2,)


@pytest.mark.parametrize(("top", "given"), [(1, 1), (3, 3), (9, 4)])
def test_the_likeliest_come_first_with_their_probabilities(top: int, given: int) -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).bfloat16()
    task = text_classification(SPEC, losses, lambda x, key: x)
    found = task.predict(lambda tokens: logits, {"tokens": torch.zeros(6, 1)}, top)
    raw = logits.double().numpy()
    for row, answers in zip(raw, found, strict=True):
        probability = np.exp(row) / np.exp(row).sum()
        order = np.argsort(-row, kind="stable")[:given]
        assert [name for name, _ in answers] == [NAMES[k] for k in order]
        assert [p for _, p in answers] == pytest.approx(probability[order], rel=1e-5)
