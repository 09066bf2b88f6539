"""What a training step would do on a GPU, shown on a stand-in for one: see ``stand_in_device.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

STEPS = ("perceptron", "mlp", "cnn", "resnet8", "vit", "airbench", "gpt-nano", "mlp:adam")
MISTAKES = {
    "copy": "copies to the CPU: _to_copy",
    "make": "makes on the CPU: zeros",
    "constant": "copies from the CPU: tensor",
    "item": "waits: _local_scalar_dense",
    "truth": "waits: _local_scalar_dense",
    "nonzero": "waits: nonzero",
    "mix": "Expected all tensors to be on the same device",
}


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no backend in Python")
    cases = [*STEPS, *(f"mlp:adamw:{mistake}" for mistake in MISTAKES)]
    program = Path(__file__).with_name("stand_in_device.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, program, *cases], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", STEPS)
def test_a_step_stays_on_the_device_and_never_waits_for_it(case: str, found: dict[str, list[str]]) -> None:
    assert found[case] == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_noticed(mistake: str, found: dict[str, list[str]]) -> None:
    assert any(fault.startswith(MISTAKES[mistake]) for fault in found[f"mlp:adamw:{mistake}"])
