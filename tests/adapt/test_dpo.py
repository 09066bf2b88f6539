"""Direct preference optimization: the loss of the paper, a reference that is asked once, and answers that change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from bigmodel_cli.adapt.dpo import Preference
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import data, losses, models, tasks
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.training.assemble import assemble, execute
from bigmodel_cli.engine.training.loop import fit
from bigmodel_cli.engine.training.run import Hooks

SHAPE = {"layers": 1, "heads": 2, "width": 16}


def pairs(path: Path, count: int = 40) -> Path:
    rows = [
        {"prompt": f"{i}: {'red' if i % 2 else 'two'} is", "chosen": " a colour" if i % 2 else " a number",
         "rejected": " a number, I say" if i % 2 else " a colour"} for i in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_loss_is_that_of_the_paper(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = data.get("preference_file")(tmp_path, path=str(pairs(tmp_path / "p.jsonl", 12)))
    model, start = (models.get("gpt")(bundle.spec, **SHAPE).eval() for _ in range(2))
    task = Preference(tasks.get("language_modeling")(bundle.spec, losses.get("cross_entropy")(), None), beta=0.3)
    source = bundle.load["train"]()
    indices = torch.tensor([1, 4, 2])

    def log_probability(model: Any, side: str, index: int) -> torch.Tensor:
        ids, learn, _ = source.sides[side][index]
        said = F.log_softmax(model(ids[None, :-1].long()), -1)[0].gather(1, ids[1:, None].long())[:, 0]
        return said[learn[1:]].sum()

    total, margins, started = 0.0, [], {"chosen": [], "rejected": []}
    for i in indices.tolist():
        apart = {side: log_probability(model, side, i) - log_probability(start, side, i) for side in started}
        margins.append(0.3 * (apart["chosen"] - apart["rejected"]).item())
        total -= F.logsigmoid(0.3 * (apart["chosen"] - apart["rejected"])).item()
        for side, values in started.items():
            values.append(log_probability(start, side, i).item())
    raw = {**source.gather(indices), **{f"{side}_started": torch.tensor(v) for side, v in started.items()}}
    batch = task.prepare(raw)
    assert task.loss(model, batch).total.item() == pytest.approx(total, rel=1e-4)
    sums = {k: v.item() for k, v in task.evaluate(model, batch).items()}
    found = task.summarise(sums)
    assert found["loss"] == pytest.approx(total / 3, rel=1e-4)
    assert found["reward_margin"] == pytest.approx(sum(margins) / 3, rel=1e-3, abs=1e-5)
    assert found["reward_accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 3)
    # The model itself as reference: no margin, right half the time.
    again = {k: v for k, v in batch.items() if not k.endswith("_started")}
    assert task.summarise({k: v.item() for k, v in task.evaluate(model, again).items()}) == pytest.approx(
        {"loss": 0.6931472, "reward_accuracy": 0.5, "reward_margin": 0.0}
    )


def started(tmp_path: Path) -> Path:
    """A checkpoint of a small model that has seen the words."""
    file = tmp_path / "a.txt"
    file.write_text("red is a colour, two is a number, I say\n" * 40)
    values = {
        "model": {"name": "gpt", **SHAPE}, "data": {"name": "text_files", "path": str(file), "context": 32},
        "train": {"epochs": 1, "batch_size": 8}, "placement": {"precision": "fp32", "device": "cpu"},
    }  # fmt: skip
    run = assemble(resolve([Layer("test", values)]).recipe)
    fit(run)
    checkpoint.save(tmp_path / "start.pt", run.state())
    return tmp_path / "start.pt"


@pytest.mark.parametrize("rank", [None, 2])
def test_the_better_answer_becomes_likelier_and_the_start_is_asked_once(tmp_path: Path, rank: int | None) -> None:
    values = {
        "model": {"name": "gpt", **SHAPE},
        "data": {"name": "preference_file", "path": str(pairs(tmp_path / "p.jsonl"))},
        "start": {"checkpoint": str(started(tmp_path)), "method": "dpo", **({"rank": rank} if rank else {})},
        "train": {"epochs": 6, "batch_size": 12}, "optimizer": {"name": "adamw", "lr": 2e-3},
        "placement": {"precision": "fp32", "device": "cpu"},
    }  # fmt: skip
    recipe = resolve([Layer("test", values)]).recipe
    events: list[dict[str, Any]] = []
    run = assemble(recipe, hooks=Hooks(events.append))
    counts = {k: len(v["chosen_started"]) for k, v in run.reference_outputs.items()}
    assert counts["val"] == len(run.val) > 1 and sum(counts.values()) == 40
    execute(run)
    ends = [event for event in events if event["event"] == "epoch"]
    assert ends[-1]["val_reward_accuracy"] == 1.0 and ends[-1]["val_reward_margin"] > 0
    assert ends[-1]["val_loss"] < 0.69 and ends[-1]["train_loss"] < ends[0]["train_loss"]
    # A checkpoint without the reference outputs does not fit this run.
    state = run.state()
    said = state.pop("said")
    with pytest.raises(InputError, match=r"said.* are missing"):
        assemble(recipe, state)
    resumed = assemble(recipe, {**state, "said": said})
    assert torch.equal(resumed.reference_outputs["train"]["chosen_started"], said["train"]["chosen_started"])
    with pytest.raises(InputError, match="do not match the data"):
        assemble(recipe, {**state, "said": {"train": said["val"], "val": said["val"]}})
