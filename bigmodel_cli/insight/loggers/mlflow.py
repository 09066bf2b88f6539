"""``--log mlflow``: curves, the recipe, pictures and texts in MLflow, on the server of MLFLOW_TRACKING_URI."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigmodel_cli.core.files.atomic_files import write_text
from bigmodel_cli.core.registry import loggers
from bigmodel_cli.insight.loggers.recipe_values import curves, recipe_values

Event = Mapping[str, Any]
ID_FILE = "mlflow.id"
LONGEST_VALUE = 500  # characters of a parameter, of which MLflow takes 6000
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""For a server that does not answer: MLflow itself waits for 14 minutes."""


@loggers.register(files=("mlflow.id",), needs=("mlflow", "sqlalchemy", "alembic"), extra="mlflow", samples=True)
@contextmanager
def mlflow(folder: Path, history: Sequence[Event]) -> Iterator[Callable[[Event], None]]:
    """MLflow: the server of MLFLOW_TRACKING_URI, or mlflow.db here; experiment MLFLOW_EXPERIMENT_NAME, or bigmodel."""
    for name, value in {**PATIENCE, "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it tells of each table that it makes
    from mlflow.tracking import MlflowClient

    tracked = _Tracked(MlflowClient(), folder)
    try:
        yield tracked.write
    finally:
        tracked.close()


class _Tracked:
    """One run of an MLflow server; the one that the folder names, where it names one."""

    def __init__(self, client: Any, folder: Path) -> None:
        self.client, self.ended, self.failed = client, False, False
        file = folder / ID_FILE
        if file.is_file() and not file.is_symlink():
            self.run_id = file.read_text(encoding="utf-8").strip()
            client.update_run(self.run_id, status="RUNNING")
        else:
            self.run_id = self._start(folder)
            write_text(file, self.run_id + "\n")
        # A resumed run repeats the epochs after its checkpoint, to the same figures; a point cannot be replaced.
        points = client.get_metric_history(self.run_id, "train/loss")
        # Epoch 0 is the start of a run that solves for its head first.
        self.done = max((point.step for point in points), default=-1)

    def _start(self, folder: Path) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "bigmodel")
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        run_id = str(self.client.create_run(experiment, run_name=folder.name).info.run_id)
        values = [Param(key, str(value)[:LONGEST_VALUE]) for key, value in recipe_values(folder).items()]
        for first in range(0, len(values), 100):  # as many as a request may have
            self.client.log_batch(run_id, params=values[first : first + 100])
        return run_id

    def write(self, event: Event) -> None:
        try:
            self._write(event)
        except Exception:
            self.failed = True
            raise

    def _write(self, event: Event) -> None:
        if event["event"] == "end":
            self.ended = True
        elif event["event"] == "epoch" and event["epoch"] > self.done:
            for name, value in curves(event).items():
                self.client.log_metric(self.run_id, name, value, step=event["epoch"])
        elif event["event"] == "samples" and event["epoch"] > self.done:
            for name, pixels in event["figures"].items():
                self.client.log_image(self.run_id, pixels, key=name, step=event["epoch"])
            for i, (_, pixels) in enumerate(event["images"], 1):
                self.client.log_image(self.run_id, pixels, key=f"sample-{i}", step=event["epoch"])
            captions = [f"{i}. {title}" for i, (title, _) in enumerate(event["images"], 1)]
            texts = [f"{title}\n\n{text}" for title, text in event["texts"]]
            self.client.log_text(
                self.run_id, "\n\n".join(captions + texts) + "\n", f"samples/epoch-{event['epoch']:04d}.txt"
            )

    def close(self) -> None:
        if not self.failed:  # a server that is gone is not asked again
            self.client.set_terminated(self.run_id, "FINISHED" if self.ended else "KILLED")
