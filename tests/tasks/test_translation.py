"""Encoder-decoder, beam search and the translation task, on a language that takes seconds to learn."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bigmodel_cli.core.registry import losses, models, tasks
from bigmodel_cli.data.parallel_text import ParallelTexts, parallel
from bigmodel_cli.tasks.beam import beam_search

WORDS = ["a", "b", "c", "d", "e", "f"]


def pairs(n: int, seed: int) -> tuple[list[str], list[str]]:
    """Each word becomes its capital's double."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        [
            WORDS[i]
            for i in torch.randint(6, (int(torch.randint(1, 5, (1,), generator=generator)),), generator=generator)
        ]
        for _ in range(n)
    ]
    return [" ".join(r) for r in rows], [" ".join(w * 2 for w in r) for r in rows]


@pytest.fixture(scope="module")
def learned():
    torch.manual_seed(0)
    bundle = parallel({"train": pairs(300, 0), "val": pairs(20, 1)}, "word", None, 300, 16)
    model = models.get("transformer")(bundle.spec, layers=1, heads=2, width=32, dropout=0.0)
    task = tasks.get("translation")(bundle.spec, losses.get("cross_entropy")(), None)
    source, optimizer = bundle.load["train"](), torch.optim.AdamW(model.parameters(), 5e-3)
    for step in range(250):
        raw = source.gather(torch.arange(step * 32 % 256, step * 32 % 256 + 32))
        loss = task.loss(model, task.prepare(raw))
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    return task, model.eval(), bundle.load["val"]()


@pytest.mark.parametrize("width", [1, 4])
def test_it_learns_and_the_beam_finds_it(learned, width: int) -> None:
    task, model, source = learned
    batch = task.prepare(source.gather(torch.arange(20)))
    with torch.inference_mode():
        found, score = beam_search(model, batch["source"], width)
    room = batch["labels"].shape[1]
    same = (F.pad(found, (0, max(0, room - found.shape[1])))[:, :room] == batch["labels"]).all(1)
    assert same.float().mean() >= 0.8  # by chance: 1 in 100
    assert (score <= 0).all()


def test_the_batch_that_a_sentence_is_in_changes_no_answer(learned) -> None:
    task, model, source = learned
    with torch.inference_mode():
        together, _ = beam_search(model, task.prepare(source.gather(torch.arange(8)))["source"], 4)
        for i in range(8):
            alone, _ = beam_search(model, task.prepare(source.gather(torch.tensor([i])))["source"], 4)
            assert [t for t in together[i].tolist() if t] == [t for t in alone[0].tolist() if t]


def test_counts_are_known_before_and_the_loss_is_that_of_the_definition(learned) -> None:
    task, model, source = learned
    raw = source.gather(torch.arange(5))
    batch = task.prepare(raw)
    loss = task.loss(model, batch)
    assert task.count(raw) == int(loss.count)
    logits = model(batch["source"], batch["target"])
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=task.pad, reduction="sum")
    torch.testing.assert_close(loss.total, expected)


def test_a_long_target_keeps_its_end(learned) -> None:
    task, _, _ = learned
    source = ParallelTexts((["a " * 40], ["aa " * 40]), task.spec, "x")
    row = source.gather(torch.tensor([0]))
    assert row["source"].shape == (1, 16) and row["target"].shape == (1, 17)
    assert row["target"][0, -1] == task.spec.vocabulary.index("<end>")


def test_bleu_is_sacrebleus_and_the_interval_holds_it(learned) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    from bigmodel_cli.core.registry import reports
    from bigmodel_cli.core.tokens import tokenizer

    task, model, source = learned
    with torch.inference_mode():
        out = task.outputs(model, task.prepare(source.gather(torch.arange(20))))
        out["answer"][0] = out["answer"][1]  # something wrong, or all is 100
    report = reports.get("translation")(task, task.spec, source, lambda: out, 2)
    known = tokenizer(task.spec)
    said, wanted = ([known.decode(ids) for ids in out[k].tolist()] for k in ("answer", "reference"))
    figure = report.values["headline"]["bleu"]
    assert figure["value"] == pytest.approx(sacrebleu.corpus_bleu(said, [wanted]).score)
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert len(report.values["wrong"]) == 2
