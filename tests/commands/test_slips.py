"""Words from other programs, other spellings, and what was meant: understood, or one line that says what to type."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import typer

from bigmodel_cli import cli
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import PlacementSection
from bigmodel_cli.core.registry import exports, losses, models, optimizers
from bigmodel_cli.core.resolve import Layer, resolve

GROUP: Any = typer.main.get_command(cli.app)
COMMANDS = {name: GROUP.get_command(None, name) for name in GROUP.list_commands(None)}
Cli = Callable[..., Any]
SLIPS = [
    (["train", "mlp", "--imgsz", "32"], "no such option --imgsz; here it is --size"),
    (["train", "mlp", "--workers", "4"], "no such option --workers; files are decoded on all cores, once"),
    (["train", "mlp", "--learning-rate", "1"], "here it is --lr"),
    (["train", "mlp", "--batch_size", "1"], "here it is --batch-size"),
    (["train", "mlp", "--weight-decay", "1"], "--set optimizer.weight_decay=..."),
    (["train", "mlp", "--save-steps", "1"], "--set train.save_steps=..."),
    (["train", "mlp", "--weights", "a.pt"], "use finetune"),
    (["train", "--model", "mlp"], "the model is named without a flag"),
    (["train", "--modle", "mlp"], "the model is named without a flag"),
    (["train", "mlp", "--frobnicate"], "no such option --frobnicate"),
    (["train", "mlp", "digits"], "data has a flag"),
    (["train", "mlp", "--device", "tpu"], "expected auto, cpu, cuda, cuda:N or mps"),
    (["train", "mlp", "--epochs", "x"], "--epochs: "),
    (["export", "runs/x", "tensorrt"], "made from onnx"),
    (["export", "runs/x", "ONNX"], "the format has a flag"),
    (["export", "runs/x", "--format", "tflite"], "made from litert"),
    (["evaluate", "runs/x"], "here it is bigmodel eval"),
    (["trian", "mlp"], "did you mean train?"),
    (["ResNet-18"], "a model is trained by train"),
    (["eval"], "CKPT is missing; expected: Checkpoint file"),
    (["data", "inspekt"], "did you mean inspect"),
]


@pytest.mark.parametrize(("arguments", "words"), SLIPS, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_slip_is_one_line_with_the_words_to_type(arguments: list[str], words: str, run_cli: Cli) -> None:
    done = run_cli(*arguments)
    first, hint = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert first.startswith("error: ") and words in first and hint.startswith("hint: "), done.stderr
    assert "recipe schema" not in hint and "^" not in first


def test_names_are_found_in_the_spelling_of_other_programs() -> None:
    found = resolve([Layer("MODEL", {"model": {"name": "ResNet-18"}, "optimizer": {"name": "SGD"},
                                     "loss": {"name": "cross-entropy"}})]).recipe  # fmt: skip
    assert (found.model.name, found.optimizer.name, found.loss.name) == ("resnet18", "sgd", "cross_entropy")
    assert exports.current("ONNX") == "onnx" and optimizers.current("AdamW") == "adamw"
    with pytest.raises(InputError, match="unknown loss"):  # negative control
        losses.get("crossed")
    plain = [name.lower().replace("-", "").replace("_", "") for name in models.names()]
    assert len(set(plain)) == len(plain), "two names that differ in spelling alone could not be told apart"


@pytest.mark.parametrize(
    ("given", "meant"),
    [("gpu", "cuda"), ("CUDA", "cuda"), ("0", "cuda:0"), (1, "cuda:1"), ("gpu:2", "cuda:2"), ("cpu", "cpu")],
)
def test_devices(given: Any, meant: str) -> None:
    assert PlacementSection(device=given).device == meant


def test_help_says_every_default() -> None:
    for command in COMMANDS.values():
        for option in command.params:
            if option.param_type_name == "option" and not option.is_flag and not option.required:
                said = "[default: " in (option.help or "")
                assert said or option.default not in (None, (), []), (command.name, option.opts)


def test_a_run_folder_is_a_start(run_cli: Cli) -> None:
    assert run_cli("train", "perceptron", "--max-steps", 2, "--out", "first").returncode == 0
    done = run_cli("finetune", "first", "--max-steps", 2, "--out", "second")
    assert done.returncode == 0, done.stderr
    assert run_cli("-V").stdout == run_cli("--version").stdout != ""


def test_catalogues_say_options_and_defaults(run_cli: Cli) -> None:
    for command, name, option, default in (
        ("optimizers", "SGD", "momentum", 0.0),
        ("methods", "lora", "rank", 8),
        ("formats", "onnx", "opset", 18),
        ("models", "mlp", "activation", "relu"),
    ):
        names = [json.loads(line)["name"] for line in run_cli(command, "--json").stdout.splitlines()]
        assert name.lower() in names
        rows = json.loads(run_cli(command, name, "--json").stdout)["options"]
        assert {row["option"]: row["default"] for row in rows}[option] == default
    shown = run_cli("recipe", "fields", "train").stdout
    assert "epochs" in shown and "passes over the train split" in shown
    unknown = run_cli("recipe", "fields", "trian")
    assert unknown.returncode == 2 and "did you mean train" in unknown.stderr
