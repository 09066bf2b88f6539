"""Searches: fields with Optuna in several processes, learning rates by a range test, methods by a short try of each."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import environment

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.strict_yaml import read_yaml
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.experiments import auto_method
from bigmodel_cli.engine.experiments.auto_method import choose
from bigmodel_cli.engine.experiments.lr_range_test import lr_range_test, steepest
from bigmodel_cli.engine.experiments.tune import LogLock, Range, read_search
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.loop import fit

RECIPE = """model: {name: mlp, hidden: [16]}
train: {epochs: 2}
search:
  optimizer.lr: {low: 1e-4, high: 1e-1, log: true}
  train.batch_size: [64, 128]
"""


def test_two_processes_share_one_search_and_a_third_goes_on(run_cli: Any, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "r.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "bigmodel_cli", "tune", "r.yaml", "--out", "out", "--json", "--trials"]
    both = [
        subprocess.Popen([*command, "6"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [json.loads(line) for process in both for line in process.communicate(timeout=200)[0].splitlines()]
    assert [process.returncode for process in both] == [0, 0]
    numbers = [event["trial"] for event in told]
    assert len(set(numbers)) == len(numbers) and 6 <= len(numbers) <= 7, "a trial is done once, by one of them"
    assert len({event["optimizer.lr"] for event in told}) == len(told), "each asked for another point"
    more = run_cli("tune", "r.yaml", "--out", "out", "--trials", len(numbers) + 1)
    assert more.returncode == 0 and more.stderr.count("trial ") == 1 and "next: bigmodel train" in more.stdout
    best = resolve([Layer("best", read_yaml(tmp_path / "out/best.yaml").values)]).recipe
    values = {e["optimizer.lr"]: e["val_accuracy"] for e in told if e["state"] == "complete"}
    assert values.get(best.optimizer.options["lr"], 1.0) >= max(values.values())
    # The same file trains as it stands: what is searched has its ordinary value.
    plain = run_cli("train", "r.yaml", "--max-steps", 1, "--out", "plain")
    assert plain.returncode == 0, plain.stderr


def test_a_killed_search_holds_nobody(tmp_path: Path) -> None:
    """A process is killed with the lock of the log; the negative control waits for one that lives."""
    log = tmp_path / "trials.log"
    program = "import sys, time; from pathlib import Path; from bigmodel_cli.engine.experiments.tune import LogLock\n"
    program += "lock = LogLock(Path(sys.argv[1])); lock.acquire(); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program, str(log)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        waiting = LogLock(log)
        waiter = threading.Thread(target=waiting.acquire, daemon=True)
        waiter.start()
        waiter.join(0.3)
        assert waiter.is_alive()
        holder.kill()
        waiter.join(30)
    assert not waiter.is_alive()
    waiting.release()


def test_a_search_says_what_is_wrong_with_it(run_cli: Any, tmp_path: Path) -> None:
    found = read_search({"optimizer.lr": {"low": 0.1, "high": 1.0}, "train.epochs": {"low": 2, "high": 4}}, "r")
    assert found == {("optimizer", "lr"): Range(low=0.1, high=1.0), ("train", "epochs"): [2, 3, 4]}
    for values, message in [
        (None, "no search: section"),
        ({"lr": [1]}, "expected section.key"),
        ({"optimizer.lr": {"low": 1.0, "high": 0.1}}, "expected low < high"),
        ({"optimizer.lr": {"low": 0.0, "high": 0.1, "log": True}}, "expected low < high"),
        ({"optimizer.lr": 3}, "expected a list, or low, high and log"),
    ]:
        with pytest.raises(InputError, match=message):
            read_search(values, "r.yaml")
    (tmp_path / "r.yaml").write_text(RECIPE.replace("optimizer.lr", "optimizer.rl"))
    done = run_cli("tune", "r.yaml")
    assert done.returncode == 2 and "unknown key optimizer.rl" in done.stderr and not (tmp_path / "runs").exists()


def test_the_rate_at_which_the_loss_falls_fastest() -> None:
    assert steepest([1, 2, 4, 8, 16, 32], [3.0, 2.9, 2.5, 1.5, 1.4, 9.0]) == 4
    with pytest.raises(InputError, match="did not fall at any learning rate"):
        steepest([1, 2, 4], [1.0, 2.0, 3.0])
    found = lr_range_test(resolve([Layer("t", {"model": {"name": "mlp"}})]).recipe)
    assert found.rates[0] == pytest.approx(1e-7) and 1e-4 < found.suggested < 1
    assert found.losses[found.rates.index(found.suggested)] < found.losses[0]


def test_the_range_test_is_drawn(run_cli: Any, tmp_path: Path) -> None:
    done = run_cli("train", "mlp", "--data", "digits", "--lr-find")
    assert done.returncode == 0 and "suggested: --lr " in done.stdout, done.stderr
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["lr-find-mlp-digits.png"]


def test_the_method_that_val_likes_best_is_chosen_and_the_reason_said(tmp_path: Path) -> None:
    run = assemble(resolve([Layer("t", {"model": {"name": "mlp"}, "train": {"epochs": 4}})]).recipe)
    assert fit(run)
    checkpoint.save(tmp_path / "base.pt", run.state())
    lines: list[str] = []

    def recipe_of(start: dict[str, Any]) -> Any:
        values = {"model": {"name": "mlp"}, "start": {"checkpoint": str(tmp_path / "base.pt"), **start}}
        return resolve([Layer("t", values)]).recipe

    chosen, trials = choose(recipe_of, lines.append)
    able = {t.method: t.value for t in trials if t.value is not None}
    assert max(able.values()) - able[chosen] < 0.03 and set(able) == {"probe", "lora", "full"}
    assert {t.samples for t in trials if t.method in able} == {len(run.val)}
    assert {t.method for t in trials} - set(able) == {"norm-only"}  # which the network has no layer for
    assert lines[-1].startswith(f"chosen {chosen}: val accuracy") and all(m in lines[-1] for m in able)


def test_what_no_method_can_exceed_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"probe": 0.5, "norm-only": 1.0}
    monkeypatch.setattr(
        auto_method, "_run_trial", lambda name, _: auto_method.Trial(name, "accuracy", values[name], 0.1, 1)
    )
    lines: list[str] = []
    assert choose(lambda start: None, lines.append)[0] == "norm-only"  # type: ignore[arg-type, return-value]
    assert "not tried: lora, full: no accuracy is better" in lines
    assert auto_method.perfect("mean_absolute_error") == 0 and auto_method.perfect("perplexity") == float("inf")


@pytest.mark.parametrize(
    ("samples", "values", "best"),
    [
        (53, {"probe": (0.94, 0.11), "full": (0.96, 0.19)}, "probe"),  # one answer of 53 is luck; the loss is not
        (53, {"probe": (0.90, 0.11), "full": (0.96, 0.19)}, "full"),  # three answers are not
        (5_300, {"probe": (0.94, 0.11), "full": (0.96, 0.19)}, "full"),
        (53, {"probe": (0.96, 0.19), "full": (0.96, 0.19)}, "probe"),  # which is the cheaper
    ],
)
def test_the_loss_decides_between_methods_that_few_samples_cannot_tell_apart(
    samples: int, values: dict[str, tuple[float, float]], best: str
) -> None:
    trials = [auto_method.Trial(name, "accuracy", *found, 1, samples) for name, found in values.items()]
    assert auto_method.best_of(trials).method == best
