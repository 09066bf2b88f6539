"""Loggers beside metrics.jsonl: what they write, on a run that goes on too, and what becomes of one that fails."""

from __future__ import annotations

import csv
import errno
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.registry import loggers
from bigmodel_cli.engine.session.loggers import Loggers
from bigmodel_cli.engine.session.run_folder import RunFolder


def epoch(number: int, **figures: float) -> dict[str, Any]:
    return {"event": "epoch", "epoch": number, "step": 10 * number, "train_loss": 1 / number, **figures}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


SECRET = "wandb-0123456789abcdef"


@pytest.fixture
def failing() -> Iterator[None]:
    """A logger that cannot be opened, and one that fails at the second event."""

    class Opened:
        def __init__(self, *given: Any) -> None:
            self.count = 0

        def __enter__(self) -> Any:
            return self.log

        def __exit__(self, *how: Any) -> None: ...

        def log(self, event: Any) -> None:
            self.count += 1
            if self.count == 2:
                raise ConnectionError(f"gone: token {SECRET}, https://x/?sig={SECRET}")

    def closed(folder: Path, history: Any) -> Any:
        raise OSError(errno.ENOENT, f"no door for {SECRET}", f"/{SECRET}")

    before = dict(loggers.found), dict(loggers._entries)
    loggers.register("closed")(closed)
    loggers.register("tires")(lambda folder, history: Opened())
    yield
    for kept, now in zip(before, (loggers.found, loggers._entries), strict=True):
        now.clear()
        now.update(kept)


def test_csv_has_a_row_an_epoch_and_new_figures_get_a_column(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", loggers=Loggers(["csv"])) as folder:
        folder.event({"event": "start"})
        folder.event(epoch(1))
        folder.event(epoch(2, val_accuracy=0.5))
    found = rows(tmp_path / "run")
    assert [(r["epoch"], r["val_accuracy"]) for r in found] == [("1", ""), ("2", "0.5")]


def test_a_run_that_goes_on_keeps_what_its_checkpoint_knows(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", loggers=Loggers(["csv"])) as folder:
        for i in (1, 2, 3):
            folder.event(epoch(i))
        (tmp_path / "run/last.pt").touch()
    with RunFolder(tmp_path / "run", resume=True, loggers=Loggers(["csv"])) as folder:
        folder.rewind(1)
        folder.event(epoch(2, val_accuracy=0.25))
        folder.rewind(1)  # a loss that was not finite: back to the checkpoint, within the run
        folder.event(epoch(2, val_accuracy=0.75))
    assert [(r["epoch"], r["val_accuracy"]) for r in rows(tmp_path / "run")] == [("1", ""), ("2", "0.75")]


def test_what_replaces_a_run_replaces_its_logs(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", loggers=Loggers(["csv"])) as folder:
        folder.event(epoch(1))
    with RunFolder(tmp_path / "run", overwrite=True):
        assert not (tmp_path / "run/metrics.csv").exists()


def test_what_a_logger_prints_stays_out_of_the_results(
    tmp_path: Path, failing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    loggers.register("loud")(lambda folder, history: nullcontext(lambda event: sys.stdout.write("epoch saved\n")))
    with RunFolder(tmp_path / "run", loggers=Loggers(["loud"])) as folder:
        folder.event(epoch(1))
    assert tuple(capsys.readouterr()) == ("", "epoch saved\n")


def test_one_that_fails_is_named_once_and_the_others_go_on(tmp_path: Path, failing: None) -> None:
    said: list[str] = []
    with RunFolder(tmp_path / "run", loggers=Loggers(["closed", "tires", "csv"], said.append)) as folder:
        for i in (1, 2, 3):
            folder.event(epoch(i))
        folder.rewind(3)  # opens all again, but those
        folder.event(epoch(4))
    assert [line.split()[2] for line in said] == ["closed", "tires"] and all(
        "is off from here" in line for line in said
    )
    assert SECRET not in "".join(said), "a service's words may hold what it was asked with"
    assert "FileNotFoundError: No such file or directory" in said[0] and said[1].endswith(": ConnectionError")
    assert [r["epoch"] for r in rows(tmp_path / "run")] == ["1", "2", "3", "4"]


def test_a_name_that_is_none_and_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"unknown logger 'cvs'.*csv"):
        Loggers(["cvs"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError, match="--log tensorboard needs tensorboard") as caught:
        Loggers(["tensorboard"])
    assert caught.value.hint == install_line("tensorboard")


def test_tensorboard_reads_the_curves_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunFolder(tmp_path / "run", loggers=Loggers(["tensorboard"])) as folder:
        for i in (1, 2, 3):
            folder.event(epoch(i, val_accuracy=i / 10))
        (tmp_path / "run/last.pt").touch()
    with RunFolder(tmp_path / "run", resume=True, loggers=Loggers(["tensorboard"])) as folder:
        folder.rewind(1)
        folder.event(epoch(2, val_accuracy=0.9))
    found = EventAccumulator(str(tmp_path / "run/tensorboard"))
    found.Reload()
    curve = [(point.step, round(point.value, 3)) for point in found.Scalars("val/accuracy")]
    assert curve == [(1, 0.1), (2, 0.9)]


TRAIN = ("train", "mlp", "--data", "digits", "--precision", "fp32", "--out", "run")
LOG = ("--log", "mlflow", "--log", "tensorboard")


def test_a_resumed_run_continues_its_curve_with_pictures_in_mlflow_and_tensorboard(
    run_cli: Any, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain = run_cli(*TRAIN[:-1], "plain", "--epochs", "2", "--json")
    first = run_cli(*TRAIN, "--epochs", "2", "--json", *LOG)
    assert first.returncode == 0 and "warning" not in first.stderr, first.stderr
    ends = [json.loads(done.stdout.splitlines()[-1]) for done in (plain, first)]
    assert ends[0]["digest"] == ends[1]["digest"]  # what is logged changes nothing
    resumed = run_cli("train", "--resume", "--out", "run", "--epochs", "3", *LOG)
    assert resumed.returncode == 0 and "warning" not in resumed.stderr, resumed.stderr

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("bigmodel")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (tmp_path / "run/mlflow.id").read_text().strip() and run.info.status == "FINISHED"
    epochs = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    expected = [(event["epoch"], event["val_accuracy"]) for event in epochs if event["event"] == "epoch"]
    history = client.get_metric_history(run.info.run_id, "val/accuracy")
    assert sorted((point.step, point.value) for point in history) == expected and len(expected) == 3
    assert run.data.params["model.name"] == "mlp" and run.data.params["data.name"] == "digits"
    stored = {path.name.partition("+")[0] for path in tmp_path.glob("mlruns/*/*/artifacts/images/*.png")}
    assert {"confusion", "sample-1"} <= stored, stored

    found = EventAccumulator(str(tmp_path / "run/tensorboard"))
    found.Reload()
    assert [image.step for image in found.Images("confusion")] == [1, 2, 3]
    assert {"samples/1"} <= set(found.Tags()["images"])


def test_a_server_that_is_gone_costs_no_run_and_its_password_stays_secret(run_cli: Any, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    server = {"MLFLOW_TRACKING_URI": "http://me:hunter22@127.0.0.1:9", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0"}
    done = run_cli(*TRAIN, "--epochs", "1", "--log", "mlflow", "--log", "csv", variables=server)
    assert done.returncode == 0 and done.stderr.count("--log mlflow failed and is off from here") == 1, done.stderr
    assert len(rows(tmp_path / "run")) == 1
    texts = [path.read_text(errors="replace") for path in (tmp_path / "run").iterdir() if path.suffix != ".pt"]
    assert not any("hunter22" in text for text in (*texts, done.stdout, done.stderr))


def test_a_language_model_shows_what_it_writes(run_cli: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small = [f"--set=data.{key}={value}" for key, value in (("vocabulary", 32), ("context", 16), ("tokens", 384))]
    done = run_cli(
        "train", "gpt-nano", "--data", "synthetic_text", *small, "--max-steps", "1", "--out", "run", *LOG[2:]
    )
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    found = EventAccumulator(str(tmp_path / "run/tensorboard"))
    found.Reload()
    (text,) = found.Tensors("texts/1/text_summary")
    assert b"after" in text.tensor_proto.string_val[0]


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_trackers_of_one_interface(name: str, run_cli: Any, tmp_path: Path) -> None:
    pytest.importorskip(name, reason=f"needs the extra {name}")
    place = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path)}
    for options in (["--epochs", "1"], ["--resume", "--epochs", "2"]):
        words = TRAIN if options[0] != "--resume" else ("train", "--out", "run")
        done = run_cli(*words, *options, "--log", name, variables=place, fresh=True)
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    if name == "wandb":
        assert len(list((tmp_path / "run/wandb").glob("offline-run-*"))) == 2
        return
    import sqlite3

    (file,) = (tmp_path / "trackio").glob("bigmodel*.db")
    with sqlite3.connect(file) as database:
        points = database.execute("select run_name, step, cast(metrics as text) from metrics order by step").fetchall()
    assert len({run for run, _, _ in points}) == 1 and {step for _, step, _ in points} == {1, 2}
    assert sum("val/accuracy" in values for _, _, values in points) == 2
