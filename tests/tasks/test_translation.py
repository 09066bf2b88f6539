"""Encoder-decoder, beam search and the translation task, on a language that takes seconds to learn."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bigmodel_cli.core.registry import losses, models, tasks
from bigmodel_cli.data.text.parallel import ParallelTexts, build_parallel
from bigmodel_cli.export.exported_model import ExportedModel
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
    bundle = build_parallel({"train": pairs(300, 0), "val": pairs(20, 1)}, "word", None, 300, 16)
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
        found, score = beam_search(model, batch["source"], width, task.spec)
    room = batch["labels"].shape[1]
    same = (F.pad(found, (0, max(0, room - found.shape[1])))[:, :room] == batch["labels"]).all(1)
    assert same.float().mean() >= 0.8  # by chance: 1 in 100
    assert (score <= 0).all()


def test_the_batch_that_a_sentence_is_in_changes_no_answer(learned) -> None:
    task, model, source = learned
    with torch.inference_mode():
        together, _ = beam_search(model, task.prepare(source.gather(torch.arange(8)))["source"], 4, task.spec)
        for i in range(8):
            alone, _ = beam_search(model, task.prepare(source.gather(torch.tensor([i])))["source"], 4, task.spec)
            assert [t for t in together[i].tolist() if t] == [t for t in alone[0].tolist() if t]


def test_written_a_token_at_a_time_the_logits_are_those_of_the_whole(learned) -> None:
    task, model, source = learned
    batch = task.prepare(source.gather(torch.arange(6)))
    with torch.inference_mode():
        whole, cache = model(batch["source"], batch["target"]), model.start_decoding(batch["source"])
        steps = [model.step(token, cache) for token in batch["target"].T]
        torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-4, atol=1e-5)
        other = model.start_decoding(batch["source"]).select(torch.tensor([3, 3, 0]))
        torch.testing.assert_close(model.step(batch["target"][:3, 0], other), steps[0][[3, 3, 0]])


def test_the_search_finds_what_trying_everything_finds(learned) -> None:
    """With as many beams as there are answers of two tokens: the best by score over penalty, each counted by hand."""
    task, model, source = learned
    row, size = task.prepare(source.gather(torch.tensor([2])))["source"], model.token.num_embeddings
    scores = {}
    with torch.inference_mode():
        found, mean = beam_search(model, row, size * 2, task.spec.with_(context=2))

        def after(*ids: int) -> torch.Tensor:
            return model(row, torch.tensor([[model.start, *ids]]))[0, -1].log_softmax(0)

        first = after()
        scores[model.end,] = first[model.end].item()
        for a in range(size):
            if a not in (model.pad, model.start, model.end):
                then = after(a)
                scores |= {
                    (a, b): (first[a] + then[b]).item() for b in range(size) if b not in (model.pad, model.start)
                }
    best = max(scores, key=lambda ids: scores[ids] / ((5 + len(ids)) / 6) ** 0.6)
    assert tuple(t for t in found[0].tolist() if t != model.pad) == best
    assert mean[0].item() == pytest.approx(scores[best] / len(best), abs=1e-4)


def test_an_export_translates_like_its_model(learned) -> None:
    task, model, source = learned
    rows = task.prepare(source.gather(torch.arange(6)))["source"]

    def run(*inputs):
        return model(*map(torch.from_numpy, inputs)).numpy()

    with torch.inference_mode():
        ours, theirs = (beam_search(m, rows, 4, task.spec) for m in (model, ExportedModel(run, 2)))
        batch = task.prepare(source.gather(torch.arange(20)))
        sums = [task.evaluate(m, batch)["loss"] for m in (model, ExportedModel(run, 2))]
        torch.testing.assert_close(*sums)  # the fill of short targets counts in neither
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-5)


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
    from bigmodel_cli.core.tokenizers.tokens import tokenizer

    task, model, source = learned
    with torch.inference_mode():
        out = task.outputs(model, task.prepare(source.gather(torch.arange(20))))
        out["answer"][0] = out["answer"][1]  # something wrong, or all is 100
    known = tokenizer(task.spec)
    hypotheses, references = [known.decode(ids) for ids in out["answer"].tolist()], [f"{t}." for t in source.targets]
    source.targets = references  # with a sign that no token stands for: a reference is what was written
    report = reports.get("translation")(task, task.spec, source, lambda: out, 2, task.metrics)
    figure = report.values["headline"]["bleu"]
    assert figure["value"] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score)
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert len(report.values["wrong"]) == 2
