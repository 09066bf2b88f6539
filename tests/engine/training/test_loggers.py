"""Loggers beside metrics.jsonl: what they write, on a run that goes on too, and what becomes of one that fails."""

from __future__ import annotations

import csv
from collections.abc import Iterator
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
                raise ConnectionError("gone")

    def closed(folder: Path, history: Any) -> Any:
        raise OSError("no door")

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
