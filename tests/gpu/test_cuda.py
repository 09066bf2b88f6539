"""What the engine does on a GPU is what it does on the CPU. Marked `gpu`: skipped where there is none."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import small_recipes
import torch
from small_recipes import small_recipe

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.tasks import TaskWrapper
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.loop import train_step
from bigmodel_cli.engine.training.run import Hooks, Run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

MODELS = ("perceptron", "mlp", "cnn", "resnet8", "resnet18", "vit", "airbench")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "adadelta", "adagrad", "adamax", "nadam", "radam", "rmsprop", "muon")


def recipe(model: str, device: str, folder: Path | None = None, precision: str = "fp32", /, **sections: Any) -> Recipe:
    placement = {"device": device, "precision": precision} | sections.pop("placement", {})
    return small_recipe(folder or Path(), model, placement=placement, **sections)


def losses(run: Run, steps: int = 3, batches_of: Run | None = None) -> list[float]:
    """The loss per sample or token of the first `steps`, on the batches of another run if it is given."""
    run.train_mode()
    found = []
    for raw in islice((batches_of or run).batches.steps(0), steps):
        raw = {name: value.to(run.placement.device) for name, value in raw.items()} if batches_of else raw
        result = train_step(run, raw)
        run.progress.step += 1
        found.append(result.loss.item() / result.count)
    return found


@pytest.mark.parametrize("model", (*MODELS, *small_recipes.MODELS))
def test_the_first_losses_are_those_of_the_cpu(model: str, tmp_path: Path) -> None:
    name = small_recipes.MODELS.get(model, ({}, {}))[0].get("name", model)
    without_chance = {"dropout": 0.0} if "dropout" in models.get(name).schema.model_fields else {}
    there = assemble(recipe(model, "cuda", tmp_path, model=without_chance), measure=False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        here = assemble(recipe(model, "cpu", tmp_path, model=without_chance), measure=False)
        assert losses(there, batches_of=here) == pytest.approx(losses(here), rel=2e-3)
    finally:
        torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_takes_the_same_steps_as_on_the_cpu(optimizer: str) -> None:
    there = assemble(recipe("mlp", "cuda", optimizer={"name": optimizer}), measure=False)
    torch.set_float32_matmul_precision("highest")
    here = assemble(recipe("mlp", "cpu", optimizer={"name": optimizer}), measure=False)
    assert losses(there) == pytest.approx(losses(here), rel=5e-3)


@pytest.mark.parametrize("model", ("cnn", "resnet18", "gpt-nano"))
@pytest.mark.parametrize("optimizer", ("momentum", "adamw"))
def test_a_step_never_waits_for_the_device(model: str, optimizer: str) -> None:
    """torch raises where the host waits for the GPU; the data is on the device, as small splits are."""
    run = assemble(recipe(model, "cuda", None, "bf16", optimizer={"name": optimizer}), measure=False)
    run.train_mode()
    batches = run.batches.steps(0)
    for raw in islice(batches, 2):  # the first steps allocate and choose kernels
        train_step(run, raw)
        run.progress.step += 1
    torch.cuda.synchronize()
    raw = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(run, raw)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_sync_check_can_fail() -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError):
            torch.ones(2, device="cuda").sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_compiled_model_has_the_same_losses() -> None:
    plain = losses(assemble(recipe("gpt-nano", "cuda", placement={"compile": False}), measure=False))
    compiled = losses(assemble(recipe("gpt-nano", "cuda", placement={"compile": True}), measure=False))
    assert compiled == pytest.approx(plain, rel=1e-2)


class Hungry(TaskWrapper):
    """As if the GPU had room for `room` samples: memory for more than that does not exist."""

    def __init__(self, task: Any, room: int) -> None:
        super().__init__(task)
        self.room, self.taken = room, list[int]()

    def loss(self, model: Any, batch: Any) -> Any:
        if len(batch["index"]) > self.room:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        self.taken.append(len(batch["index"]))
        return self.task.loss(model, batch)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_step() -> None:
    data = {"name": "synthetic_text", "vocabulary": 64, "context": 16, "tokens": 4096}
    setting = recipe("gpt-nano", "cuda", train={"batch_size": 64}, data=data)
    whole = losses(assemble(setting, measure=False), 2)
    events: list[dict[str, Any]] = []
    run = assemble(setting, measure=False, hooks=Hooks(on_event=events.append))
    task = Hungry(run.task, 16)
    halved = losses(dataclasses.replace(run, task=task), 2)
    assert task.taken == [16] * 8
    assert sum("out of memory" in e.get("message", "") for e in events) == 2
    assert halved == pytest.approx(whole, rel=2e-3)


def test_out_of_memory_at_one_sample_ends_with_the_machine_to_blame() -> None:
    run = assemble(recipe("mlp", "cuda"), measure=False)
    with pytest.raises(MachineError, match="out of memory"):
        losses(dataclasses.replace(run, task=Hungry(run.task, 0)), 1)
