"""What a run does not wait for at its start."""

from __future__ import annotations

import subprocess
import sys

OPTIMIZERS = """
import sys, torch
from bigmodel_cli.engine.late_compiler import postpone_compiler
postpone_compiler()
weight = torch.nn.Parameter(torch.ones(3))
for kind in (torch.optim.SGD, torch.optim.AdamW):
    optimizer = kind([weight], lr=0.1, fused=True)
    weight.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
assert "sympy" not in sys.modules, "the compiler was imported"
import torch._dynamo.config
assert torch._dynamo.config.__name__ == "torch._dynamo.config"
assert torch.compile(lambda x: x + 1, backend="eager")(weight).sum() == weight.sum() + 3
weight.sum().backward()
optimizer.step()
"""

SHAPES = """
import sys, torch
from bigmodel_cli.models.without_values import without_values
with without_values():
    layer = torch.nn.Conv2d(3, 1 << 20, 3)
    torch.nn.init.kaiming_normal_(layer.weight)
assert layer.weight.is_meta and layer.weight.shape == (1 << 20, 3, 3, 3)
assert "sympy" not in sys.modules
assert float(torch.nn.init.normal_(torch.zeros(100)).std()) > 0.1
"""


def test_optimizers_do_without_the_compiler_until_something_is_compiled() -> None:
    subprocess.run([sys.executable, "-c", OPTIMIZERS], check=True)


def test_a_model_without_values_draws_no_noise() -> None:
    subprocess.run([sys.executable, "-c", SHAPES], check=True)
