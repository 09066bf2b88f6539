"""Tensor parallelism: ranks that share each matrix are one run, and what they save is anybody's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from nursery import Nursery
from spread import spread
from test_ranks_agree import assert_equal, trained

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.build.data import load_data, train_and_val
from bigmodel_cli.engine.build.load import load_trained
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.device.placement import choose_placement
from bigmodel_cli.engine.device.ranks import Ranks
from bigmodel_cli.engine.distributed.process_group import SINGLE_PROCESS, Group
from bigmodel_cli.engine.training.assemble import assemble, execute
from bigmodel_cli.engine.training.evaluate import evaluate

LEARNED = {"heads": 2, "bias": True}
ROTARY = {"heads": 4, "kv_heads": 2, "position": "rope", "norm": "rms", "mlp": "swiglu", "tied": False}
SECTIONS: dict[str, Any] = {
    "data": {"name": "text_files", "path": "", "context": 16},
    "train": {"epochs": 2, "batch_size": 8, "max_steps": 20, "clip_norm": 0.5, "ema_decay": 0.9},
    "optimizer": {"name": "adamw", "lr": 3e-3},
    "placement": {"precision": "fp32"},
}


def recipe(folder: Path, model: dict[str, Any], **parallel: Any) -> Any:
    text = folder / "letters.txt"
    own = folder / f"letters-{os.getpid()}.tmp"  # each rank writes it: never seen half
    own.write_text("to be or not to be, that is the question\n" * 60)
    own.replace(text)
    sections = {**SECTIONS, "data": {**SECTIONS["data"], "path": str(text)}, "parallel": parallel}
    sections["model"] = {"name": "gpt", "layers": 2, "width": 32, **model}
    return resolve([Layer("test", sections)]).recipe


@pytest.mark.parametrize("model", [LEARNED, ROTARY])
def test_two_ranks_share_each_matrix_and_are_one_run(model: dict[str, Any], tmp_path: Path) -> None:
    """Losses, samples, metrics and weights of one process: with ties, biases, clipping, an average."""
    wanted = recipe(tmp_path, model, strategy="tp")
    one = trained(wanted)
    two = spread(2, lambda group: trained(wanted, group), tmp_path)
    assert len(one["losses"]) == 20 and len(one["metrics"]) == 2
    for rank in two:
        assert rank["losses"] == pytest.approx(one["losses"], abs=1e-4)
        assert rank["metrics"] == two[0]["metrics"] and rank["seen"] == one["seen"]
    for ours, alone in zip(two[0]["metrics"], one["metrics"], strict=True):
        assert ours == pytest.approx(alone, rel=1e-4)
    for part in ("model", "model_ema"):
        assert_equal(two[0]["state"][part], one["state"][part])


def test_each_rank_holds_its_part(tmp_path: Path) -> None:
    """Half of every matrix and of its gradient's moments; ties and what the plan does not name as they were."""

    def work(group: Group) -> Any:
        run = assemble(recipe(tmp_path, LEARNED, strategy="tp"), measure=False, group=group)
        assert run.model.head.weight is run.model.token.weight  # type: ignore[union-attr]
        return {name: list(p.to_local().shape) for name, p in run.model.named_parameters()}  # type: ignore[attr-defined]

    whole = assemble(recipe(tmp_path, LEARNED), measure=False).model
    first, second = spread(2, work, tmp_path)
    for name, parameter in whole.named_parameters():
        halves, size = first[name], list(parameter.shape)
        if "norm" in name or name == "position.weight" or name.endswith(("proj.bias", "down.bias")):
            assert halves == second[name] == size, name
        else:
            dimension = int(name.endswith(("proj.weight", "down.weight")))
            assert halves[dimension] + second[name][dimension] == size[dimension], name
            assert abs(halves[dimension] - second[name][dimension]) <= 1, name


def test_saved_on_some_and_resumed_on_others(tmp_path: Path) -> None:
    """Two that share, one, two pairs of such: stopped in mid-epoch, the losses of one process."""
    model = {**ROTARY, "layers": 1}
    whole = trained(recipe(tmp_path, model))
    losses: list[float] = []
    before = None
    for stop, world, parallel in (
        (4, 2, {"strategy": "tp"}),
        (8, 1, {}),
        (11, 4, {"strategy": "fsdp", "tensor": 2}),
    ):
        wanted = recipe(tmp_path, model, **parallel)
        parts = [trained(wanted, SINGLE_PROCESS, stop, before)] if world == 1 else spread(
            world, lambda group, w=wanted, s=stop, b=before: trained(w, group, s, b), tmp_path
        )  # fmt: skip
        losses += parts[0]["losses"]
        before = tmp_path / f"{world}-{stop}.pt"
        checkpoint.save(before, parts[0]["state"])
    assert len(losses) == 11 and losses == pytest.approx(whole["losses"][:11], abs=1e-4)


@pytest.mark.parametrize(
    ("model", "parallel", "expected"),
    [
        ({"heads": 2, "kv_heads": 1}, {"strategy": "tp"}, "1 key-value heads over 2"),
        ({"dropout": 0.1}, {"strategy": "tp"}, "dropout 0.1"),
        ({}, {"strategy": "ddp", "tensor": 2}, "parallel.tensor 2 with parallel.strategy ddp"),
        ({}, {"strategy": "fsdp", "tensor": 3}, "parallel.tensor 3"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    model: dict[str, Any], parallel: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=expected):
        assemble(recipe(tmp_path, model, **parallel), group=Group(Ranks(0, 2, 0, 2)))


def test_a_model_without_a_plan_is_refused() -> None:
    wanted = resolve([Layer("test", {"model": {"name": "mlp"}, "parallel": {"strategy": "tp"}})]).recipe
    with pytest.raises(InputError, match="mlp has no plan"):
        assemble(wanted, group=Group(Ranks(0, 2, 0, 2)))


def test_finetuning_by_preferences(tmp_path: Path) -> None:
    """What the start says is asked for by every rank, and trained on afterwards; what holds weights is refused."""
    checkpoint.save(tmp_path / "start.pt", assemble(recipe(tmp_path, LEARNED), measure=False).state())
    pair = {"prompt": "to be", "chosen": " or not to be", "rejected": " so"}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 12)

    def sections(method: str, strategy: str) -> Any:
        start = {"checkpoint": str(tmp_path / "start.pt"), "method": method}
        values = recipe(tmp_path, LEARNED, strategy=strategy).to_dict()
        values["train"].update(epochs=1, ema_decay=None)
        if method == "dpo":
            values["data"] = {"name": "preference_file", "path": str(tmp_path / "pairs.jsonl")}
        return resolve([Layer("test", {**values, "start": start})]).recipe

    def work(group: Group, strategy: str) -> Any:
        run = assemble(sections("dpo", strategy), measure=False, group=group)
        execute(run)
        return checkpoint.digest(run.reference_outputs["train"]), float(run.progress.best_loss)

    _, alone = work(SINGLE_PROCESS, "auto")
    for strategy in ("tp", "fsdp"):
        first, second = spread(2, lambda group, s=strategy: work(group, s), tmp_path)
        assert first == second and first[1] == pytest.approx(alone, rel=1e-4)
        with pytest.raises(InputError, match=f"strategy {strategy} with method l2-sp"):
            assemble(sections("l2-sp", strategy), group=Group(Ranks(0, 2, 0, 2)))


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("to be or not to be, that is the question\n" * 60)
    command = ["train", "gpt", "--data", "letters.txt", "--precision", "fp32", "--batch-size", "8", "--epochs", "1"]
    for option in ("model.layers=1", "model.heads=2", "model.width=32", "data.context=16", "parallel.strategy=tp"):
        command += ["--set", option]
    with Nursery(tmp_path) as nursery:
        code, child = nursery.run(*command, "--nproc", "2", "--json", "--out", "two")
        assert code == 0, child.error
        assert "W1" not in child.error and "arn" not in child.error, child.error
    end = json.loads(child.out.read_text().splitlines()[-1])
    trained_there = load_trained(tmp_path / "two")
    _, val = train_and_val(load_data(trained_there.recipe.data), trained_there.recipe.data)
    found = evaluate(trained_there.model, trained_there.task, val, choose_placement(trained_there.recipe.placement), 8)
    assert found is not None and found["loss"] == pytest.approx(end["val_loss"], rel=1e-5)


TABLES = {
    "mf": {"user.weight", "item.weight"},
    "ncf": {"user.weight", "item.weight"},
    "dcn-v2": {"user.weight", "item.weight"},
    "two-tower": {"token.weight", "bias.weight"},
    "sasrec": {"token.weight"},
}


def recommender(name: str, folder: Path, **parallel: Any) -> Any:
    return resolve([Layer("test", {
        "model": {"name": name}, "data": {"name": "interaction_file", "path": str(folder / "a.csv")},
        "train": {"max_steps": 8, "batch_size": 16, "clip_norm": 0.5, "ema_decay": 0.9},
        "placement": {"precision": "fp32"}, "parallel": parallel,
    })]).recipe  # fmt: skip


def test_ranks_share_the_rows_of_tables_and_are_one_run(tmp_path: Path) -> None:
    """Each holds half of the rows of a table and of its optimizer's state; the rest is on both, dropout as on one."""
    rows = [f"u{u},i{(3 * u + t) % 31},{1 + (u + t) % 5},{t}" for u in range(40) for t in range(8)]
    (tmp_path / "a.csv").write_text("\n".join(["user,item,rating,time", *rows]) + "\n")

    def work(group: Group) -> Any:
        ranks = {}
        for name in TABLES:
            found = trained(recommender(name, tmp_path, strategy="tp"), group)
            run = assemble(recommender(name, tmp_path, strategy="tp"), measure=False, group=group)
            rows = {n: len(p.to_local()) for n, p in run.model.named_parameters()}  # type: ignore[attr-defined]
            ranks[name] = {**found, "rows": rows}
        return ranks

    first, second = spread(2, work, tmp_path)
    for name, tables in TABLES.items():
        one = trained(recommender(name, tmp_path))
        whole = assemble(recommender(name, tmp_path), measure=False).model.named_parameters()
        for n, size in {n: len(p) for n, p in whole}.items():
            held = (first[name]["rows"][n], second[name]["rows"][n])
            assert sum(held) == size and max(held) <= size // 2 + 1 if n in tables else held == (size, size), (name, n)
        for rank in (first[name], second[name]):
            assert rank["losses"] == pytest.approx(one["losses"], abs=1e-4) and len(rank["losses"]) == 8, name
            assert rank["metrics"] == first[name]["metrics"], name
        assert first[name]["metrics"][-1] == pytest.approx(one["metrics"][-1], rel=1e-3), name
        for part in ("model", "model_ema"):
            assert_equal(first[name]["state"][part], one["state"][part])
    with pytest.raises(InputError, match=r"parallel\.tensor 2 of 4 processes for ncf"):
        assemble(recommender("ncf", tmp_path, strategy="fsdp", tensor=2), group=Group(Ranks(0, 4, 0, 4)))
