"""Every kind of model through its commands on a GPU: the same answers as on the CPU. Skipped where there is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from small_recipes import written

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a process that asked CUDA itself cannot be forked

STEPS = ("--max-steps", 6)
Events = list[dict[str, Any]]
Command = Callable[..., Events]


@pytest.fixture
def command(run_cli: Run) -> Command:
    """The JSON lines of a command that ends well."""

    def run(*words: Any) -> Events:
        done = run_cli(*words, "--json")
        assert done.returncode == 0, f"bigmodel {' '.join(map(str, words))}\n{done.stderr}\n{done.stdout[-2000:]}"
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run


def trained_on_cuda(events: Events) -> None:
    assert any("cuda" in json.dumps(event) for event in events[:3]), events[:3]


def headline(events: Events) -> dict[str, float]:
    return {name: figure["value"] for name, figure in events[-1]["headline"].items()}


def same_on_cpu(command: Command, *words: Any) -> None:
    """`eval` on the GPU and in fp32 on the CPU; bf16 has 8 bits."""
    gpu, cpu = (headline(command("eval", *words, *more)) for more in ((), ("--device", "cpu", "--precision", "fp32")))
    assert gpu == pytest.approx(cpu, rel=0.05, abs=0.03)


@pytest.mark.parametrize("model", ("perceptron", "cnn", "alexnet", "resnet8", "vit", "plain8"))
def test_images(model: str, command: Command, run_cli: Run, tmp_path: Path) -> None:
    trained_on_cuda(command("train", model, "--data", "digits", "--epochs", 1, "--out", "run"))
    same_on_cpu(command, "run")
    assert run_cli("data", "sample", "digit.png").returncode == 0
    assert command("predict", "run", "digit.png")
    command("explain", "run", "digit.png", "--out", "why.html")
    assert (tmp_path / "why.html").stat().st_size > 1000


@pytest.mark.parametrize("model", ("text-cnn", "text-encoder"))
@pytest.mark.parametrize("data", ("labelled_file", "text_targets"))
def test_texts(model: str, data: str, command: Command, tmp_path: Path) -> None:
    path = written(tmp_path, data)["path"]
    task = ("--task", "regression") if data == "text_targets" else ()
    trained_on_cuda(command("train", model, "--data", path, *task, "--epochs", 5, "--out", "run"))
    same_on_cpu(command, "run")
    assert command("predict", "run", "--text", "w1 w2 x")
    command("explain", "run", "--text", "w1 w2 x")
    command("finetune", "--from", "run", "--data", path, *task, "--method", "lora", *STEPS, "--out", "tuned")


@pytest.mark.parametrize("model", ("gpt-nano", "gpt-mini"))
def test_language_models(model: str, command: Command, tmp_path: Path) -> None:
    trained_on_cuda(command("train", model, "--data", "tales", "--set", "data.context=64", *STEPS, "--out", "run"))
    same_on_cpu(command, "run")
    greedy = ("generate", "run", "--prompt", "Once", "--max-tokens", 20, "--temperature", 0)
    assert command(*greedy)
    ends = ("an apple", "a tree", "the sea", "a bird") * 10
    (tmp_path / "chat.jsonl").write_text("".join(f'{{"prompt": "what", "completion": "{end}"}}\n' for end in ends))
    command("finetune", "--from", "run", "--data", "chat.jsonl", *STEPS, "--out", "chat")
    pairs = (f'{{"prompt": "what", "chosen": "{end}", "rejected": "no"}}\n' for end in ends)
    (tmp_path / "better.jsonl").write_text("".join(pairs))
    command("finetune", "--from", "run", "--data", "better.jsonl", "--method", "dpo", *STEPS, "--out", "dpo")


def test_translation(command: Command, tmp_path: Path) -> None:
    pairs = written(tmp_path, "parallel_file")["path"]
    small = ("--set", "model.width=32", "--set", "model.layers=1", "--set", "model.heads=2")
    trained_on_cuda(command("train", "transformer", "--data", pairs, *small, *STEPS, "--out", "run"))
    assert headline(command("eval", "run"))
    assert command("predict", "run", "--text", "a w1 b")


@pytest.mark.parametrize("model", ("mf", "mf --set model.solver=als --set model.sweeps=5", "ncf", "dcn-v2", "two-tower",
                                   "sasrec", "ease"))  # fmt: skip
def test_recommendation(model: str, command: Command, tmp_path: Path) -> None:
    rows = (f"u{u},i{(u * 7 + k * k) % 40},{1 + (u + k) % 5},{k}\n" for u in range(60) for k in range(12))
    (tmp_path / "clicks.csv").write_text("user,item,rating,time\n" + "".join(rows))
    command("train", *model.split(), "--data", "clicks.csv", "--out", "run")
    same_on_cpu(command, "run")
    assert command("predict", "run", "--user", "u3", "--top", 3)


@pytest.mark.parametrize("method", ("full", "freeze-backbone", "probe", "lora", "bitfit", "norm-only", "gradual",
                                    "layer-decay", "l2-sp", "qat"))  # fmt: skip
def test_every_method_of_images(method: str, command: Command) -> None:
    command("train", "resnet8", "--data", "digits", *STEPS, "--out", "start")
    command("finetune", "--from", "start", "--method", method, "--data", "digits", *STEPS, "--out", "run")
    same_on_cpu(command, "run")


@pytest.mark.parametrize(
    "words",
    (
        ("eval", "run", "--calibrate"),
        ("eval", "run", "--conformal", 0.9),
        ("eval", "run", "--tta"),
        ("eval", "run", "--page", "page.html"),
        ("export", "run", "--format", "pt2"),
        ("export", "run", "--format", "safetensors"),
        ("train", "mlp", "--data", "digits", "--out", "found", "--lr-find"),
        ("train", "mlp", "--data", "digits", "--out", "folds", "--folds", 2, *STEPS),
        ("train", "cnn", "--data", "digits", "--out", "ema", "--set", "train.ema_decay=0.9", *STEPS),
        ("train", "cnn", "--data", "digits", "--out", "parts", "--set", "train.accumulate=2", *STEPS),
        ("train", "cnn", "--data", "digits", "--out", "fp32", "--precision", "fp32", *STEPS),
        ("train", "cnn", "--data", "digits", "--out", "mixed", "--set", "augment.name=strong", *STEPS),
        ("train", "cnn", "--data", "digits", "--out", "two", "--nproc", 1, *STEPS),
        ("ensemble", "run", "run", "--out", "both"),
        ("audit", "digits", "run"),
    ),
    ids=lambda words: "-".join(map(str, words)).replace("/", "_"),
)
def test_further_commands(words: tuple[Any, ...], command: Command) -> None:
    command("train", "mlp", "--data", "digits", *STEPS, "--out", "run")
    command(*words)


def test_private_training(command: Command) -> None:
    pytest.importorskip("opacus")
    command("train", "mlp", "--data", "digits", "--private", 3, "--epochs", 1, "--out", "run")
    same_on_cpu(command, "run")


def test_a_run_goes_on_bit_for_bit(command: Command) -> None:
    assert command("verify-resume", "mlp", "--data", "digits", "--steps", 6)[-1]
