"""Several ranks are one run: the losses, every sample once, the metrics, and what they save."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from spread import grown, spread

from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.checkpoint.async_writer import snapshot
from bigmodel_cli.engine.distributed.process_group import SINGLE_PROCESS, Group
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.loop import fit
from bigmodel_cli.engine.training.run import Hooks

MLP: dict[str, Any] = {
    "model": {"name": "mlp", "hidden": [16], "dropout": 0.0},
    "data": {"name": "digits"},
    "train": {"epochs": 5, "batch_size": 130, "max_steps": 50},  # ten steps an epoch of unequal sizes
    "placement": {"precision": "fp32"},
}


def recipe(**sections: Any) -> Any:
    return resolve([Layer("test", {**MLP, **{k: {**MLP.get(k, {}), **v} for k, v in sections.items()}})]).recipe


def trained(
    wanted: Any, group: Group = SINGLE_PROCESS, stop_at: int | None = None, resume: Path | None = None
) -> dict[str, Any]:
    """Train; the losses, this rank's samples in order, the metrics of each epoch, the last state."""
    told: dict[str, Any] = {"losses": [], "seen": [], "metrics": []}

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            told["losses"].append(event["loss"])
        if event["event"] == "epoch":
            told["metrics"].append({k: v for k, v in event.items() if k.startswith("val_")})

    hooks = Hooks(emit, lambda run: group.any(run.progress.step == stop_at))
    state = checkpoint.load(resume) if resume else None
    run = assemble(wanted, state, measure=False, group=group, hooks=hooks)
    gather = run.batches.source.gather

    def watched(indices: torch.Tensor) -> Any:
        told["seen"].append(indices.tolist())
        return gather(indices)

    object.__setattr__(run.batches, "source", Watched(run.batches.source, watched))

    fit(run)
    state, arrived = snapshot(run.state())
    arrived()
    return {**told, "state": state, "steps": run.progress.step}


class Watched:
    def __init__(self, source: Any, gather: Any) -> None:
        self.source, self.gather = source, gather

    def __len__(self) -> int:
        return len(self.source)


def test_two_ranks_are_one_run(tmp_path: Path) -> None:
    one = trained(recipe())
    two = spread(2, lambda group: trained(recipe(), group), tmp_path)
    assert len(one["losses"]) == 50
    for rank in two:
        assert rank["losses"] == pytest.approx(one["losses"], abs=1e-4)
        assert rank["metrics"] == two[0]["metrics"] and len(rank["metrics"]) == 5
    for ours, alone in zip(two[0]["metrics"], one["metrics"], strict=True):
        assert ours == pytest.approx(alone, abs=1e-3)
    assert_equal(two[0]["state"]["model"], two[1]["state"]["model"], exact=True)
    assert_equal(two[0]["state"]["model"], one["state"]["model"])
    assert once_an_epoch([rank["seen"] for rank in two], steps=10) == once_an_epoch([one["seen"]], steps=10)


def once_an_epoch(seen: list[list[list[int]]], steps: int) -> list[list[int]]:
    """Each step's samples over all ranks, sorted; every sample of an epoch stands once in it."""
    joined = [sorted(i for part in parts for i in part) for parts in zip(*seen, strict=True)]
    for epoch in range(len(joined) // steps):
        counts = Counter(i for step in joined[epoch * steps : (epoch + 1) * steps] for i in step)
        assert set(counts.values()) == {1} and len(counts) == max(counts) + 1
    return joined


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], exact: bool = False) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-4)


@pytest.mark.parametrize("first", [2, 1])
def test_saved_on_two_resumed_on_one_and_back(first: int, tmp_path: Path) -> None:
    """2 -> 1 -> 2 and 1 -> 2 -> 1, stopped in mid-epoch: the losses of a run on one, no sample lost or repeated."""
    whole = trained(recipe())
    losses: list[float] = []
    seen: list[list[int]] = []
    before = None
    for world, stop in ((first, 13), (3 - first, 27), (first, None)):
        parts = [trained(recipe(), SINGLE_PROCESS, stop, before)] if world == 1 else spread(
            2, lambda group, stop=stop, before=before: trained(recipe(), group, stop, before), tmp_path
        )  # fmt: skip
        losses += parts[0]["losses"]
        done = parts[0]["steps"] - len(seen)
        # A batch is gathered ahead of the step that a stop kept from being taken.
        seen += [sorted(i for rank in parts for i in rank["seen"][step]) for step in range(done)]
        before = tmp_path / f"{len(seen)}.pt"
        checkpoint.save(before, parts[0]["state"])
    assert losses == pytest.approx(whole["losses"], abs=1e-4)
    assert seen == [sorted(step) for step in whole["seen"]]


def test_resumed_on_as_many_ranks_is_bit_equal(tmp_path: Path) -> None:
    """Dropout draws from each rank's own numbers, which are saved with the rest."""
    wanted = recipe(model={"name": "mlp", "dropout": 0.2}, train={"epochs": 2, "ema_decay": 0.9, "max_steps": 20})
    whole = spread(2, lambda group: trained(wanted, group), tmp_path)
    part = spread(2, lambda group: trained(wanted, group, 7), tmp_path)
    checkpoint.save(tmp_path / "last.pt", part[0]["state"])
    rest = spread(2, lambda group: trained(wanted, group, None, tmp_path / "last.pt"), tmp_path)
    assert part[0]["losses"] + rest[0]["losses"] == whole[0]["losses"]
    for key in ("model", "model_ema", "optimizer", "rng"):
        assert checkpoint.digest(rest[0]["state"][key]) == checkpoint.digest(whole[0]["state"][key]), key


def test_batchnorm_counts_on_every_rank(tmp_path: Path) -> None:
    """Statistics are the mean over ranks, and equal on them; accumulation keeps the number of passes equal."""
    wanted = resolve([Layer("test", {**MLP, "model": {"name": "resnet20"}, "train": {"max_steps": 3, "batch_size": 63, "accumulate": 3}})]).recipe  # fmt: skip # noqa: E501
    two = spread(2, lambda group: trained(wanted, group), tmp_path)
    assert_equal(two[0]["state"]["model"], two[1]["state"]["model"], exact=True)
    assert two[0]["metrics"] == two[1]["metrics"]


def test_a_split_smaller_than_the_ranks_is_counted_once(tmp_path: Path) -> None:
    from bigmodel_cli.engine.training.evaluate import evaluate

    run = assemble(recipe(), measure=False)
    few = run.batches.source

    class Few:
        def __len__(self) -> int:
            return 5

        def gather(self, indices: torch.Tensor) -> Any:
            return few.gather(indices)

    def work(group: Group, size: int) -> Any:
        return evaluate(run.model, run.task, Few(), run.placement, size, group=group)  # type: ignore[arg-type]

    expected = work(SINGLE_PROCESS, 512)
    for size in (1, 2, 512):
        for found in spread(3, lambda group, size=size: work(group, size), tmp_path):
            assert found == pytest.approx(expected, abs=1e-6)


def test_out_of_memory_on_one_rank_halves_on_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigmodel_cli.tasks.image_classification import ImageClassification

    real = ImageClassification.loss
    alone = trained(recipe(train={"max_steps": 5, "batch_size": 130, "epochs": 1}))

    def work(group: Group) -> Any:
        def limited(self: Any, model: Any, batch: Any) -> Any:
            if group.rank == 1 and len(batch["label"]) > 20:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(self, model, batch)

        monkeypatch.setattr(ImageClassification, "loss", limited)
        return trained(recipe(train={"max_steps": 5, "batch_size": 130, "epochs": 1}), group)

    for rank in spread(2, work, tmp_path):
        assert rank["losses"] == pytest.approx(alone["losses"], abs=1e-5)


GPT: dict[str, Any] = {
    "model": {"name": "gpt", "layers": 2, "heads": 2, "width": 32, "mlp": "swiglu", "position": "rope"},
    "data": {"name": "text_files", "path": "", "context": 16},
    "train": {"batch_size": 8, "max_steps": 6, "accumulate": 2, "clip_norm": 0.5, "ema_decay": 0.9},
    "optimizer": {"name": "adamw", "lr": 3e-3},
    "placement": {"precision": "fp32"},
}


def gpt(folder: Path, strategy: str, **model: Any) -> Any:
    text = folder / "letters.txt"
    own = folder / f"letters-{os.getpid()}.tmp"  # each rank writes it: never seen half
    own.write_text("to be or not to be, that is the question\n" * 60)
    own.replace(text)
    sections = {**GPT, "data": {**GPT["data"], "path": str(text)}, "parallel": {"strategy": strategy}}
    sections["model"] = {**GPT["model"], **model}
    return resolve([Layer("test", sections)]).recipe


def test_ddp_and_fsdp_agree_and_read_each_others_checkpoints(tmp_path: Path) -> None:
    """Tied weights, an average of weights, accumulation and clipping; a run that changes its strategy in the middle."""
    one = trained(gpt(tmp_path, "auto"))
    ddp = spread(2, lambda group: trained(gpt(tmp_path, "ddp"), group), tmp_path)[0]
    fsdp = spread(2, lambda group: trained(gpt(tmp_path, "fsdp"), group), tmp_path)[0]
    assert len(one["losses"]) == 6
    for other in (ddp, fsdp):
        assert other["losses"] == pytest.approx(one["losses"], abs=1e-4)
        assert other["metrics"][0] == pytest.approx(one["metrics"][0], abs=1e-2)
        for part in ("model", "model_ema"):
            assert_equal(other["state"][part], one["state"][part])
    half = spread(2, lambda group: trained(gpt(tmp_path, "fsdp"), group, 3), tmp_path)[0]
    checkpoint.save(tmp_path / "half.pt", half["state"])
    for strategy in ("fsdp", "ddp", None):
        if strategy is None:
            rest = trained(gpt(tmp_path, "auto"), resume=tmp_path / "half.pt")
        else:
            rest = spread(
                2, lambda group, s=strategy: trained(gpt(tmp_path, s), group, None, tmp_path / "half.pt"), tmp_path
            )[0]
        assert half["losses"] + rest["losses"] == pytest.approx(one["losses"], abs=1e-4), strategy


def test_no_rank_but_the_first_holds_the_whole_model(tmp_path: Path) -> None:
    """Each builds without weights and gets its own parts: from rank 0, or where it resumes from the checkpoint."""
    wanted, small = gpt(tmp_path, "fsdp", layers=16, width=512), gpt(tmp_path, "fsdp")
    alone = assemble(wanted, measure=False).model
    whole = 4 * sum(p.numel() for p in alone.parameters())

    def work(group: Group) -> Any:
        assemble(small, measure=False, group=group)  # 100 MB of torch's own
        peak, run = grown(lambda: assemble(wanted, measure=False, group=group))
        return {"peak": peak, "digest": checkpoint.digest(run.parallel.gather_full(dict(run.model.state_dict())))}

    first, second = spread(2, work, tmp_path)
    assert first["digest"] == second["digest"] == checkpoint.digest(dict(alone.state_dict()))
    # Two models: the one that trains and its average. They are large beside what a process needs for itself.
    assert whole > 160e6 and second["peak"] < 0.85 * 2 * whole, (first["peak"], second["peak"], whole)
