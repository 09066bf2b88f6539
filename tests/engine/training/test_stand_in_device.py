"""What steps of training and evaluation would do on a GPU, shown on a stand-in for one: see ``stand_in_device.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

IMAGES = ("perceptron", "mlp", "cnn", "resnet8", "vit", "airbench", "mlp:adam")
TEXTS = ("gpt-nano", "text-cnn", "text-encoder", "several", "numbers", "chat", "transformer")
ITEMS = ("mf", "ncf", "dcn-v2", "sasrec", "two-tower")
STEPS = (*IMAGES, *TEXTS, *ITEMS)
MISTAKES = {
    "copy": "copies to the CPU: _to_copy",
    "make": "makes on the CPU: zeros",
    "constant": "copies from the CPU: tensor",
    "item": "waits: _local_scalar_dense",
    "truth": "waits: _local_scalar_dense",
    "nonzero": "waits: nonzero",
    "branch": "other operators each time",
    "mix": "Expected all tensors to be on the same device",
}

WRONG = [("mlp", mistake) for mistake in (*MISTAKES, "eval-copy")] + [
    ("text-cnn", "item"),
    ("text-cnn", "eval-constant"),
    ("mf", "make"),
    ("mf", "eval-branch"),
]
"""A mistake of each kind, and some of them in each kind of task, in training and in evaluation."""


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no backend in Python")
    cases = [*STEPS, *(f"{model}:adamw:{mistake}" for model, mistake in WRONG)]
    program = Path(__file__).with_name("stand_in_device.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, program, *cases], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", STEPS)
def test_its_steps_stay_on_the_device_and_never_waits_for_it(case: str, found: dict[str, list[str]]) -> None:
    assert found[case] == []


@pytest.mark.parametrize(("model", "mistake"), WRONG)
def test_each_mistake_is_noticed(model: str, mistake: str, found: dict[str, list[str]]) -> None:
    where = "evaluation " if mistake.startswith("eval-") else ""
    expected = where + MISTAKES[mistake.removeprefix("eval-")]
    assert any(fault.startswith(expected) for fault in found[f"{model}:adamw:{mistake}"])
