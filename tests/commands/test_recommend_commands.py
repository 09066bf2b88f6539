"""Recommenders through the real commands: train, resume, evaluate, recommend, explain, fine-tune on new users."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from conftest import Run

import bigmodel
from bigmodel_cli.commands.recommendation.items import explain_recommendations, recommend
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.engine.build.load import load_trained

SMALL = ("--set", "placement.precision=fp32", "--set", "placement.device=cpu")


def table(path: Path, users: range, items: int) -> Path:
    """Users who walk through the catalogue from an item of their own on, and like even items more."""
    draw, lines = random.Random(0), ["user,item,rating,time"]
    for user in users:
        first = draw.randrange(items)
        lines += [f"u{user},i{(first + t) % items},{5 - (first + t) % items % 2 * 3},{t}" for t in range(8)]
    path.write_text("\n".join(lines) + "\n")
    return path


def last_line(done: object) -> dict[str, object]:
    assert done.returncode == 0, done.stderr  # type: ignore[attr-defined]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[attr-defined, no-any-return]


def test_a_ranker_from_a_table_to_new_users(run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path / "a.csv", range(60), 20)
    train = ("train", "sasrec", "--data", "./a.csv", "--epochs", "25", "--set", "model.width=16", "--lr", "1e-2")
    whole = last_line(run_cli(*train, "--set", "model.dropout=0", *SMALL, "--out", "run", "--json"))
    assert whole["val_hit_rate_10"] > 0.9
    report = last_line(run_cli("eval", "run", "--split", "test", "--json"))
    rivals = report["baselines"]
    assert rivals["popularity"]["ndcg_10_difference"]["low"] > 0, "the next item depends on the last one"  # type: ignore
    told = run_cli("predict", "run", "--user", "nobody", "--user", "u7", "--top", "5", "--json")
    assert told.returncode == 2 and "no user 'nobody'" in told.stderr  # the other is answered
    said = json.loads(told.stdout)
    seen = {row.split(",")[1] for row in (tmp_path / "a.csv").read_text().splitlines() if row.startswith("u7,")}
    top = [row["item"] for row in said["top"]]  # type: ignore[index, attr-defined]
    assert len(top) == 5 and not seen & set(top) and said["seen"] == 8
    why = run_cli("explain", "run", "--user", "u7", "--top", "3", "--json")
    first = json.loads(why.stdout.splitlines()[0])
    assert first["item"] == top[0] and {b["item"] for b in first["because"]} <= seen and len(first["because"]) == 3
    table(tmp_path / "b.csv", range(50, 80), 25)
    tuned = run_cli("finetune", "--from", "run", "--data", "./b.csv", "--epochs", "1", *SMALL, "--out", "tuned")
    assert tuned.returncode == 0, tuned.stderr
    assert "20 new users" in tuned.stderr + tuned.stdout and "5 new items" in tuned.stderr + tuned.stdout
    known = [load_trained(tmp_path / name).task.spec for name in ("run", "tuned")]
    assert known[1].user_ids[:60] == known[0].user_ids and known[1].item_ids[:20] == known[0].item_ids
    monkeypatch.chdir(tmp_path)
    learned = bigmodel.evaluate("run", split="train")
    assert learned["samples"] == 60 and learned["headline"]["hit_rate_10"]["value"] > 0.9 and learned["baselines"]
    tuned_model = load_trained(tmp_path / "tuned")
    (absent,) = recommend(tuned_model, [], ["u7"], 3, [])
    assert not len(absent.history) and len(absent.items) == 3, "b.csv says nothing of u7"
    with pytest.raises(InputError, match="u7 has seen no item"):
        explain_recommendations(tuned_model, ["u7"], False, 3, False, None)
    other = run_cli("eval", "run", "--data", "./b.csv")
    assert other.returncode == 2 and "unknown to the model" in other.stderr and "finetune" in other.stderr


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("two-tower", ()),
        ("sasrec", ("model.negatives=8", "model.sparse=true", "optimizer.name=rowwise-adagrad", "optimizer.rows=21")),
    ],
)
def test_an_interrupted_run_ends_as_an_unbroken_one(
    run_cli: Run, tmp_path: Path, model: str, options: tuple[str, ...]
) -> None:
    table(tmp_path / "a.csv", range(40), 20)
    given = [part for option in ("model.width=8", *options) for part in ("--set", option)]
    done = run_cli("verify-resume", model, "--data", "./a.csv", *given, "--batch-size", "8")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("model", "options"),
    [("mf", ("model.solver=gibbs", "model.sweeps=30", "model.burn_in=5", "model.samples=8", "model.implicit=true")),
     ("mf", ("model.solver=als",)), ("dcn-v2", ())],
)  # fmt: skip
def test_ratings(run_cli: Run, tmp_path: Path, model: str, options: tuple[str, ...]) -> None:
    table(tmp_path / "a.csv", range(60), 20)
    given = [part for option in options for part in ("--set", option)]
    file = tmp_path / "a.csv"
    file.write_text(file.read_text().replace("user,item", "who,what", 1))
    columns = ("--data", "./a.csv", "--columns", "user=who,item=what")
    done = last_line(run_cli("train", model, *columns, *given, *SMALL, "--out", "run", "--json"))
    assert done["val_rmse"] < 1.5, "the deviation of the ratings"
    report = last_line(run_cli("eval", "run", "--split", "test", "--json"))
    assert report["headline"]["rmse"]["low"] < report["headline"]["rmse"]["value"]  # type: ignore[index]
    (tmp_path / "pairs.csv").write_text("What;Who\ni3;u1\ni4;u2\ni3;nobody\n")  # as the training data calls them
    rated = run_cli("predict", "run", "pairs.csv", "--out", "rated.jsonl")
    found = [json.loads(line) for line in (tmp_path / "rated.jsonl").read_text().splitlines()]
    assert rated.returncode == 2 and "pairs.csv:4: no user 'nobody'" in rated.stderr
    assert "2 predictions: rated.jsonl" in rated.stdout and "separated by semicolons" in rated.stderr
    assert [(row["user"], row["item"]) for row in found] == [("u1", "i3"), ("u2", "i4")]
    trained = load_trained(tmp_path / "run")
    users, items = (torch.tensor([f(row[k]) for row in found]) for f, k in
                    ((trained.task.spec.user_index, "user"), (trained.task.spec.item_index, "item")))  # fmt: skip
    with torch.inference_mode():
        wanted = trained.model(users, items).clamp(2, 5)
    assert [row["rating"] for row in found] == pytest.approx(wanted.tolist(), abs=1e-5)
    even = last_line(run_cli("predict", "run", "--user", "u1", "--top", "3", "--json"))
    assert len(even["top"]) == 3  # type: ignore[arg-type]
    if model == "mf" and "model.solver=als" in options:
        refused = run_cli("explain", "run", "--user", "u1")
        assert refused.returncode == 2 and "does not read the user's history" in refused.stderr
    wrong = run_cli("predict", "run", "--user", "nobody")
    assert wrong.returncode == 2 and "no user 'nobody'" in wrong.stderr
    classes = run_cli("train", model, *columns, "--set", "loss.name=cross_entropy", "--out", "other")
    if model == "dcn-v2":
        assert classes.returncode == 2 and "rating prediction; expected" in classes.stderr and "mse" in classes.stderr


def test_inspect_counts_what_is_in_a_table(run_cli: Run, tmp_path: Path) -> None:
    rows = ["a,x,5,10", "a,y,4,10", "a,z,3,11", "b,x,1,5", "b,y,2,30", "b,w,2,31", "b,w,4,32"]
    (tmp_path / "a.csv").write_text("user,item,rating,time\n" + "\n".join(rows) + "\n")
    found = last_line(run_cli("data", "inspect", "./a.csv", "--json"))
    assert (found["interactions"], found["users"], found["items"]) == (6, 2, 4)
    assert found["density"] == 6 / 8
    assert found["interactions at the same time as another of the user"] == pytest.approx(2 / 6)
    assert found["leave-last-out: tests before the latest train interaction of others"] == 0.5
    assert any("1 repeated pairs" in str(note) for note in found["notes"])  # type: ignore[attr-defined]
