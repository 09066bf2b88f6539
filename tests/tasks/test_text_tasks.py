"""What a batch of text means: targets, sums, keyed windows; and that fill tokens change no answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from bigmodel_cli.core.registry import losses, models, tasks
from bigmodel_cli.core.types import SampleKey, TextSpec
from bigmodel_cli.data.text.windows import Windows

CHARS = TextSpec("char", ("a", "é", "b", "c"), 8)


def language(spec: TextSpec = CHARS):
    return tasks.get("language_modeling")(spec, losses.get("cross_entropy")(), None)


def test_in_evaluation_every_token_but_the_first_is_predicted_once() -> None:
    tokens = torch.randint(4, (29,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    source, task = Windows(tokens, 8, "val"), language()
    assert len(source) == 4
    batch = task.prepare(source.gather(torch.arange(4)))
    targets = batch["targets"].flatten()
    assert targets[targets >= 0].tolist() == tokens[1:].tolist()
    flat = batch["tokens"].flatten()[:28]
    assert flat.tolist() == tokens[:28].tolist()


def test_in_training_windows_start_anywhere_and_depend_on_seed_epoch_and_index_alone() -> None:
    tokens = (torch.arange(8 * 200) % 251).to(torch.uint8)
    source, task = Windows(tokens, 8, "train"), language(TextSpec("byte", (), 8))
    raw = source.gather(torch.arange(200))

    def starts(epoch: int, chosen: torch.Tensor) -> torch.Tensor:
        part = {k: v[chosen] for k, v in raw.items()}
        batch = task.prepare(part, SampleKey(0, epoch, part["index"]))
        assert torch.equal(batch["targets"][:, :-1], batch["tokens"][:, 1:])
        return (batch["tokens"][:, 0] - part["tokens"][:, 0].long()) % 251

    first = starts(0, torch.arange(200))
    assert set(first.tolist()) == set(range(8))
    assert torch.equal(first[[7, 3]], starts(0, torch.tensor([7, 3])))
    assert not torch.equal(first, starts(1, torch.arange(200)))


def test_sums_are_those_of_the_definition() -> None:
    torch.manual_seed(0)
    model, task = models.get("gpt")(CHARS, layers=1, width=8, heads=2).eval(), language()
    tokens = torch.tensor([0, 1, 2, 3, 1, 1, 0, 2, 3, 1, 0], dtype=torch.uint8)
    batch = task.prepare(Windows(tokens, 8, "val").gather(torch.arange(2)))
    sums = {k: v.item() for k, v in task.evaluate(model, batch).items()}
    expected = F.cross_entropy(
        torch.cat([model(tokens[None, :8].long())[0], model(tokens[None, 8:10].long())[0]]), tokens[1:].long()
    ).item()
    found = task.summarise(sums)
    size = len("ébcééabcéa".encode())
    assert sums["count"] == 10 and sums["bytes"] == size
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(expected * 10 / math.log(2) / size, rel=1e-5)


@pytest.mark.parametrize("name", ["text-cnn", "text-encoder"])
def test_fill_tokens_change_no_answer(name: str) -> None:
    torch.manual_seed(0)
    spec = TextSpec("word", ("<pad>", "<unk>", *(f"w{i}" for i in range(20))), 16, ("no", "yes", "maybe"))
    model = models.get(name)(spec).eval()
    texts = [torch.randint(1, 22, (n,)) for n in (1, 5, 9)]
    together = model(torch.nn.utils.rnn.pad_sequence(texts, batch_first=True))
    assert together.shape == (3, 3)
    for text, row in zip(texts, together, strict=True):
        torch.testing.assert_close(model(text[None])[0], row, rtol=1e-4, atol=1e-5)
    assert model(torch.zeros(2, 4, dtype=torch.int64)).isfinite().all()


def test_classes_and_words_of_other_data_are_matched_by_name() -> None:
    trained = TextSpec("word", ("<pad>", "<unk>", "x", "y"), 4, ("no", "yes"))
    data = TextSpec("word", ("<pad>", "<unk>", "y", "z"), 4, ("yes", "never", "no"))
    task = tasks.get("text_classification")(trained, losses.get("cross_entropy")(), None).for_data(data)
    raw = {"tokens": torch.tensor([[2, 3, 0]] * 3), "label": torch.tensor([0, 1, 2]), "index": torch.arange(3)}
    batch = task.prepare(raw)
    assert batch["tokens"][0].tolist() == [3, 1, 0]
    assert batch["label"].tolist() == [1, -1, 0]
