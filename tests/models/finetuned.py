"""What every fine-tuned run must do, whatever its model: learn, keep what is frozen, load again, ship and go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.commands.training.finetune_layers import start_layers
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import Source
from bigmodel_cli.engine.build.load import load_trained
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.training.assemble import assemble, execute
from bigmodel_cli.engine.training.cached_features import OnFeatures
from bigmodel_cli.engine.training.evaluate import evaluate
from bigmodel_cli.engine.training.loop import train_step
from bigmodel_cli.engine.training.run import Run
from bigmodel_cli.export.proof import prove
from bigmodel_cli.export.subject import Subject

METHODS = [
    name for name in methods.names() if name not in ("distill", "qat") and "task" not in methods.get(name).meta
]  # distill needs a teacher; qat is for what is trained already


def task_of(run: Run) -> Any:
    """The task of the whole model, also where the run sees features."""
    return run.task.task if isinstance(run.task, OnFeatures) else run.task


def learns_ships_and_goes_on(
    run: Run, train: Source, short: dict[str, Any], folder: Path, at_start: float | None
) -> None:
    """Train `run` and go on with the recipe `short`; its loss on `train` is `at_start` before, None: not known."""
    task = task_of(run)

    def loss(model: torch.nn.Module, task: Any) -> float:
        found = evaluate(model, task, train, run.placement, 12, lambda: False)
        assert found is not None
        return found["loss"]

    held = {name: tensor.clone() for name, tensor in run.model.state_dict().items() if name in run.frozen.tensors}
    before = loss(run.model, task)
    assert at_start is None or before == pytest.approx(at_start, abs=1e-5), "a new head knows nothing"
    assert execute(run)
    after = run.model.state_dict()
    assert not [name for name, tensor in held.items() if not torch.equal(tensor, after[name])]
    learned = loss(run.model if run.ema is None else run.ema.module, task)
    assert learned < (before if at_start is None else at_start) - 1e-3
    checkpoint.save(folder / "x.pt", run.state())
    loaded = load_trained(folder / "x.pt")
    assert loss(loaded.model, loaded.task) == pytest.approx(learned, abs=1e-3)
    about = {**loaded.source_metadata(), "data": {}}
    shipped = Subject(loaded.model, loaded.task, [train.gather(torch.arange(2))], about)
    assert prove(shipped, "safetensors", folder / "shipped", seconds=0).passed
    again = [Layer("t", {"data": run.recipe.to_dict()["data"], **short})]
    more = assemble(
        resolve(start_layers(folder / "x.pt", False, {"method": "full"}, again).layers).recipe, measure=False
    )
    assert loss(more.eval_model, more.task) == pytest.approx(learned, abs=1e-3), "it goes on from where it stood"
    more.train_mode()
    assert train_step(more, next(more.batches.steps(0))).loss.isfinite()
