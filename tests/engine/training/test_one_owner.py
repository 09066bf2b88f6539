"""One owner of a run: whatever trains gets it ready, nobody patches it, and each method goes with each command."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.build.load import load_trained
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.experiments import auto_method
from bigmodel_cli.engine.experiments.lr_range_test import lr_range_test
from bigmodel_cli.engine.experiments.reproduce import verify_resume
from bigmodel_cli.engine.experiments.tune import tune
from bigmodel_cli.engine.session.run_folder import RunFolder
from bigmodel_cli.engine.session.session import train
from bigmodel_cli.engine.training.run import Run

ROOT = Path(__file__).resolve().parents[3]
GPT = {"name": "gpt", "layers": 1, "heads": 2, "width": 16}
ON_CPU = {"precision": "fp32", "device": "cpu", "threads": 1, "compile": False, "channels_last": False}


@dataclasses.dataclass(frozen=True)
class Subjects:
    """Two trained models with data to go on with: images of digits, and text that asks and answers."""

    folder: Path

    def images(self, method: str, **start: Any) -> dict[str, Any]:
        own = {"distill": {"teacher": str(self.folder / "images/best.pt")}, "freeze-until": {"layer": "linear1"}}
        start = {"checkpoint": str(self.folder / "images/best.pt"), "method": method, **own.get(method, {}), **start}
        return sections({"name": "mlp"}, {"name": "digits"}, start, batch_size=400)

    def text(self, method: str, data: str = "chat", **start: Any) -> dict[str, Any]:
        own = {"distill": {"teacher": str(self.folder / "text/best.pt")}, "freeze-until": {"layer": "blocks"}}
        start = {"checkpoint": str(self.folder / "text/best.pt"), "method": method, **own.get(method, {}), **start}
        sources = {
            "chat": {"name": "chat_file", "path": str(self.folder / "chat.jsonl"), "context": 64, "pack": True},
            "pairs": {"name": "preference_file", "path": str(self.folder / "pairs.jsonl"), "val_share": 0.1},
        }
        return sections(GPT, sources[data], start, batch_size=12)


def sections(model: Any, data: Any, start: Any, **train_: Any) -> dict[str, Any]:
    return {
        "model": model, "data": data, "start": start, "train": {"epochs": 3, **train_},
        "optimizer": {"name": "adamw", "lr": 2e-3}, "placement": ON_CPU,
    }  # fmt: skip


def recipe(values: dict[str, Any]) -> Recipe:
    return resolve([Layer("test", values)]).recipe


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Subjects:
    folder = tmp_path_factory.mktemp("subjects")
    talk = [("user", "red?"), ("assistant", "a colour")], [("user", "two?"), ("assistant", "a number")]
    rows = [{"messages": [{"role": role, "content": said} for role, said in talk[i % 2]]} for i in range(40)]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [
        {"prompt": f"{'red' if i % 2 else 'two'} is", "chosen": " a colour" if i % 2 else " a number",
         "rejected": " a number, I say" if i % 2 else " a colour"} for i in range(40)
    ]  # fmt: skip
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    chat = {"name": "chat_file", "path": str(folder / "chat.jsonl"), "context": 64}
    for name, model, data in (("images", {"name": "mlp"}, {"name": "digits"}), ("text", GPT, chat)):
        train(recipe(sections(model, data, {})), RunFolder(folder / name), lambda event: None)
    return Subjects(folder)


def tried(values: dict[str, Any], folder: Path, *rates: float) -> list[dict[str, Any]]:
    pytest.importorskip("optuna")
    search = {("optimizer", "lr"): list(rates)}
    return tune([Layer("test", values)], search, folder, len(rates), lambda event: None)[1]  # type: ignore[arg-type]


def test_a_search_by_preferences_asks_the_start(subjects: Subjects, tmp_path: Path) -> None:
    """Without the start's answers every margin is 0, and every trial right half the time."""
    trials = tried(subjects.text("dpo", "pairs"), tmp_path, 2e-3, 1e-3)
    assert max(trial["reward_accuracy"] for trial in trials) > 0.5


def test_a_search_over_what_is_solved_solves(tmp_path: Path) -> None:
    """On features of random weights: a rate of nothing would leave the head as random as it starts."""
    for trial in tried(sections({"name": "mlp"}, {"name": "digits"}, {"method": "probe"}), tmp_path, 1e-9):
        assert trial["accuracy"] > 0.8


def test_a_search_compares_by_what_the_runs_are_chosen_by(subjects: Subjects) -> None:
    """What the registration of a method with a task of its own says is what its runs say."""
    from bigmodel_cli.engine.experiments.tune import selection_metric
    from bigmodel_cli.engine.training.assemble import assemble

    for values in (subjects.text("dpo", "pairs"), subjects.text("full"), subjects.images("distill")):
        assert selection_metric(recipe(values)) == assemble(recipe(values), measure=False).task.best


def test_preferences_resume_exactly(subjects: Subjects, tmp_path: Path) -> None:
    found, count = verify_resume(recipe(subjects.text("dpo", "pairs")), 4, tmp_path, lambda event: None)
    assert found == [] and count > 20
    assert "said" in checkpoint.load(tmp_path / "half.pt")


def test_features_resume_exactly(subjects: Subjects, tmp_path: Path) -> None:
    found, _ = verify_resume(recipe(subjects.images("freeze-backbone")), 4, tmp_path, lambda event: None)
    assert found == []


def test_what_takes_no_steps_is_refused_by_name(subjects: Subjects, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="method probe takes 0 steps here; expected at least 2"):
        verify_resume(recipe(subjects.images("probe")), 4, tmp_path, lambda event: None)
    with pytest.raises(InputError, match="method probe takes no steps"):
        lr_range_test(recipe(subjects.images("probe")), 10)


def test_the_range_test_of_preferences_moves_away_from_the_start(subjects: Subjects) -> None:
    """Beside itself a model has no margin: the loss would be log 2 at every rate."""
    found = lr_range_test(recipe(subjects.text("dpo", "pairs")), 30)
    assert max(found.losses) - min(found.losses) > 0.01


def test_a_language_model_has_no_classes_to_distil(subjects: Subjects, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="distill: language modeling has no classes"):
        train(recipe(subjects.text("distill")), RunFolder(tmp_path / "run"), lambda event: None)


@pytest.mark.parametrize("kind", ["images", "text"])
@pytest.mark.parametrize("method", methods.names())
def test_every_method_trains_or_is_refused_by_name(kind: str, method: str, subjects: Subjects, tmp_path: Path) -> None:
    """Digits, and conversations in packed rows; what is refused leaves nothing behind."""
    values = subjects.images(method) if kind == "images" else subjects.text(method)
    values["train"]["max_steps"] = 2
    try:
        outcome = train(recipe(values), RunFolder(tmp_path / "run"), lambda event: None)
    except InputError as error:
        assert method in error.line and len(error.line) <= 200, error.line
        return
    assert outcome.run.progress.step == (0 if outcome.run.adapted.solve else 2)
    assert load_trained(outcome.best).progress["epoch"] == 1


@pytest.mark.parametrize("method", ["full", "freeze-backbone", "probe", "dpo"])
def test_a_dry_run_goes_the_same_way(method: str, subjects: Subjects, tmp_path: Path) -> None:
    from bigmodel_cli.engine.experiments.dry_run import measure

    values = subjects.text("dpo", "pairs") if method == "dpo" else subjects.images(method)
    found = measure(recipe(values), tmp_path)
    assert found.steps == (0 if method == "probe" else 9 if method == "dpo" else 12)
    assert (found.step_seconds == 0) == (method == "probe") and found.estimated_seconds > 0
    assert list(tmp_path.iterdir()) == []


def test_the_methods_tried_by_auto_are_registered_so() -> None:
    assert auto_method.candidates() == ["probe", "norm-only", "lora", "full"]


def test_a_run_cannot_be_patched(subjects: Subjects) -> None:
    from bigmodel_cli.engine.training.assemble import assemble

    run = assemble(recipe(subjects.images("full")), measure=False)
    for name in (field.name for field in dataclasses.fields(Run)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(run, name, None)


NAMES = {"run", "built", "draft", "unbroken", "resumed", "whole", "broken", "kept", "rest"}


def patches(source: str) -> list[str]:
    """Where `source` assigns an attribute of what it calls a run, or goes round its being frozen."""
    found = []
    for node in ast.walk(ast.parse(source)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        targets = [t for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            found += [
                ast.unparse(t)
                for t in targets
                if isinstance(t, ast.Attribute)
                and isinstance(t.value, ast.Name)
                and t.value.id in NAMES
                and not t.attr.startswith("__")  # a function that is called run is none
            ]
        if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in ("setattr", "object.__setattr__"):
            found += [ast.unparse(node)] if ast.unparse(node.args[0]) in NAMES else []
    return found


def test_nobody_patches_a_run() -> None:
    for folder in ("bigmodel_cli", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if path != Path(__file__).resolve():
                assert patches(path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize("source", ["run.emit = f", "run.a, run.b = 1, 2", "run.n += 1", "setattr(run, 'a', 1)"])
def test_the_rule_against_patches_can_fail(source: str) -> None:
    assert patches(source)


def damaged() -> dict[str, Any]:
    """What a checkpoint of an mlp under AdamW with an average may hold that no run can go on from."""
    return {
        "progress.step": -1, "progress.epoch": 2**60, "progress.loss_sum": "0", "progress.best_metric": True,
        "model_ema": None, "model_ema.n_averaged": 3, "model_ema.head.bias": torch.zeros(3),
        "model.head.bias": torch.zeros(10, dtype=torch.int64),
        "optimizer.state": [], "optimizer.state.0": 3, "optimizer.state.0.exp_avg": torch.zeros(2, 2),
        "optimizer.state.0.step": 1, "optimizer.state.77": {}, "optimizer.state.0.extra": 1.0,
        "optimizer.param_groups": [{"params": [0]}], "optimizer.param_groups.0": 7, "optimizer.extra": 1,
        "rng.cpu": torch.zeros(5056, dtype=torch.int64), "rng.ranks": [], "rng": {},
    }  # fmt: skip


@pytest.fixture(scope="module")
def averaged() -> tuple[Recipe, dict[str, Any]]:
    from bigmodel_cli.engine.training.assemble import assemble, execute

    values = sections({"name": "mlp", "hidden": [4]}, {"name": "digits"}, {}, ema_decay=0.9, max_steps=2)
    run = assemble(recipe(values), measure=False)
    assert execute(run)
    return run.recipe, run.state()


@pytest.mark.parametrize("place", damaged())
def test_a_state_that_does_not_fit_is_named(place: str, averaged: Any) -> None:
    import copy

    from bigmodel_cli.engine.training.assemble import assemble

    wanted, state = averaged[0], copy.deepcopy(averaged[1])
    keys: list[Any] = [int(k) if k.isdigit() else k for k in place.split(".")]
    if keys[0] in ("model", "model_ema") and len(keys) > 1:
        keys = [keys[0], ".".join(map(str, keys[1:]))]
    parent = state
    for key in keys[:-1]:
        parent = parent[key]
    parent[keys[-1]] = damaged()[place]
    with pytest.raises(InputError) as caught:
        assemble(wanted, state, measure=False)
    assert "does not fit this run" in caught.value.line or "model" in caught.value.line
    assert any(str(key) in caught.value.line for key in keys[:2]) and len(caught.value.line) <= 200


def test_a_bug_in_resuming_is_told_as_one(averaged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyError of our own is not the user's fault."""
    from bigmodel_cli.engine.training.assemble import assemble

    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda self, state: state["nonsense"])
    with pytest.raises(KeyError, match="nonsense"):
        assemble(averaged[0], averaged[1], measure=False)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum", "gd", "muon", "adagrad", "nadam"])
def test_every_kind_of_optimizer_resumes(optimizer: str) -> None:
    from bigmodel_cli.engine.training.assemble import assemble, execute

    values = sections({"name": "mlp", "hidden": [4]}, {"name": "digits"}, {}, max_steps=2)
    values["optimizer"] = {"name": optimizer}
    run = assemble(recipe(values), measure=False)
    assert execute(run)
    again = assemble(run.recipe, run.state(), measure=False)
    again.set_lr()
    run.set_lr()
    assert checkpoint.digest(again.optimizer.state_dict()) == checkpoint.digest(run.optimizer.state_dict())
