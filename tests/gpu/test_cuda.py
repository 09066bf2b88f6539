"""What the engine does on a GPU is what it does on the CPU. Marked `gpu`: skipped where there is none."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.tasks import TaskWrapper
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.loop import train_step
from bigmodel_cli.engine.training.run import Hooks, Run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

IMAGES = {"name": "synthetic_images", "size": 32, "count": 64, "classes": 10}
TEXT = {"name": "synthetic_text", "vocabulary": 256, "context": 32, "tokens": 4096}
MODELS = ("perceptron", "mlp", "cnn", "resnet8", "resnet18", "vit", "airbench", "gpt-nano")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "adadelta", "adagrad", "adamax", "nadam", "radam", "rmsprop", "muon")


def recipe(model: str, device: str, precision: str = "fp32", **sections: Any) -> Recipe:
    data = TEXT if model.startswith("gpt") else IMAGES
    placement = {"device": device, "precision": precision} | sections.pop("placement", {})
    train = {"batch_size": 16} | sections.pop("train", {})
    values = {"model": {"name": model}, "data": data, "placement": placement, "train": train, **sections}
    return resolve([Layer("test", values)]).recipe


def losses(run: Run, steps: int = 3) -> list[float]:
    run.train_mode()
    found = []
    for raw in islice(run.batches.steps(0), steps):
        result = train_step(run, raw)
        run.progress.step += 1
        found.append(result.loss.item() / result.count)
    return found


@pytest.fixture(autouse=True)
def exact_products() -> None:
    """fp32 products in fp32: the CPU has no TF32 to be compared with."""
    torch.cuda.empty_cache()


@pytest.mark.parametrize("model", MODELS)
def test_the_first_losses_are_those_of_the_cpu(model: str) -> None:
    there = assemble(recipe(model, "cuda"), measure=False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        assert losses(there) == pytest.approx(losses(assemble(recipe(model, "cpu"), measure=False)), rel=2e-3)
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
    run = assemble(recipe(model, "cuda", "bf16", optimizer={"name": optimizer}), measure=False)
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
    setting = recipe("gpt-nano", "cuda", train={"batch_size": 64})
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


def command(*words: Any) -> list[dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-m", "bigmodel_cli", *map(str, words), "--json"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_the_commands_from_training_to_an_answer(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command("train", "mlp", "--data", "digits", "--epochs", 3, "--out", run)
    on_gpu = command("eval", run)[-1]["headline"]["accuracy"]["value"]
    on_cpu = command("eval", run, "--device", "cpu")[-1]["headline"]["accuracy"]["value"]
    assert abs(on_gpu - on_cpu) < 0.02
    command("finetune", "--from", run, "--freeze-backbone", "--data", "digits", "--epochs", 2, "--out", tmp_path / "b")


@pytest.mark.parametrize("method", ("full", "freeze-backbone", "probe", "lora", "bitfit", "norm-only", "gradual",
                                    "layer-decay", "l2-sp", "qat"))  # fmt: skip
def test_every_method_trains_on_the_gpu(method: str, tmp_path: Path) -> None:
    if not (tmp_path.parent / "start").exists():
        command("train", "resnet8", "--data", "digits", "--max-steps", 5, "--out", tmp_path.parent / "start")
    command("finetune", "--from", tmp_path.parent / "start", "--method", method, "--data", "digits", "--max-steps", 5,
            "--out", tmp_path / "run")  # fmt: skip
