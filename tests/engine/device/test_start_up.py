"""What a run does not wait for at its start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

OPTIMIZERS = """
import sys, torch
from bigmodel_cli.engine.device.lazy_dynamo import postpone_dynamo

def trained(kind, **options):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
    optimizer = kind([weight], lr=0.1, **options)
    for _ in range(3):
        (weight ** 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.is_grad_enabled() and weight.grad is None
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, 2))]})
    return weight.detach()

kinds = "SGD Adam AdamW RMSprop Adagrad Adadelta Adamax NAdam RAdam Muon".split()
if late:
    postpone_dynamo()
    postpone_dynamo()
found = [trained(getattr(torch.optim, kind)) for kind in kinds] + [trained(torch.optim.AdamW, fused=True)]
torch.save(found, f"{sys.argv[1]}/{late}.pt")
assert ("torch._dynamo" in sys.modules) != late, "the compiler was imported"
"""
COMPILED = """
from torch.utils.flop_counter import FlopCounterMode
from bigmodel_cli.engine.device.lazy_dynamo import without_dynamo
layer = torch.nn.Linear(4, 2)
with without_dynamo(), FlopCounterMode(display=False) as counter:
    layer(torch.ones(3, 4))
assert counter.get_total_flops() == 48 and "torch._dynamo" not in sys.modules
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
quick = torch.compile(layer, backend="eager")
for step in (optimizer.step, torch.compile(optimizer.step, backend="eager")):
    before = layer.weight.detach().clone()
    quick(torch.ones(3, 4)).sum().backward()
    step()
    assert not torch.equal(layer.weight, before)
"""

SHAPES = """
import sys, torch
from types import SimpleNamespace
from bigmodel_cli.engine.plan.flops import layers
from bigmodel_cli.models.layers.meta_init import init_on_meta, skip_random_init
with init_on_meta():
    layer = torch.nn.Conv2d(3, 1 << 20, 3)
    torch.nn.init.kaiming_normal_(layer.weight)
    table = torch.nn.Embedding(1 << 20, 8)
    torch.nn.init.normal_(table.weight, std=0.02)
assert layer.weight.is_meta and layer.weight.shape == (1 << 20, 3, 3, 3) and table.weight.is_meta
assert "sympy" not in sys.modules
state, used = torch.get_rng_state(), torch.full((100,), 1e9)
with skip_random_init():
    torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Conv2d(3, 4, 3), torch.nn.Embedding(5, 6))
    torch.nn.init.trunc_normal_(used, std=0.02)
assert torch.equal(torch.get_rng_state(), state), "noise for weights that are loaded next"
assert used.abs().max() < 1, "values beyond the bounds would be drawn again for ever"
assert float(torch.nn.init.normal_(torch.zeros(100)).std()) > 0.1
with init_on_meta():
    task = SimpleNamespace(example=lambda n: [torch.ones(n, 3, 5, 5)])
    plain = torch.nn.Conv2d(3, 4, 3)
    _, flops = layers(torch.nn.Sequential(plain, torch.nn.BatchNorm2d(4), torch.nn.GELU()), task)
assert flops == 2 * 9 * 3 * 4 * 9
assert "torch._dynamo" not in sys.modules and "torch._inductor" not in sys.modules
"""


FORKS = """
import os, sys, torch
kept, *programs = sys.argv[1:]
for program in programs:
    pid = os.fork()
    if pid == 0:
        sys.argv[1:] = [kept]
        exec(program, {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, program
"""
"""Runs each program in a process of its own that has imported torch and nothing more."""


def run_each(*programs: str, kept: Path) -> None:
    subprocess.run([sys.executable, "-c", FORKS, str(kept), *programs], check=True)


def test_what_waits_for_the_compiler_and_what_never_needs_it(tmp_path: Path) -> None:
    """Optimizers do without it until something is compiled; a model init on meta draws no noise and is counted."""
    late, plain = (f"late = {late}\n{OPTIMIZERS}" for late in (True, False))
    run_each(late + COMPILED, plain, SHAPES, kept=tmp_path)
    for ours, torchs in zip(torch.load(tmp_path / "True.pt"), torch.load(tmp_path / "False.pt"), strict=True):
        assert torch.equal(ours, torchs)
