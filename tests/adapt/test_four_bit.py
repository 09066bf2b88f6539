"""Low-rank adapters beside a base in 4 bits: its numbers, its size, its gradients, a real network tuned that way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import methods, models
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import ImageSpec, Start
from bigmodel_cli.engine.build.digest import digest
from bigmodel_cli.engine.build.load import load_trained
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.evaluate import evaluate
from bigmodel_cli.engine.training.loop import fit
from bigmodel_cli.engine.training.run import Hooks, Run
from bigmodel_cli.models.adapters.lora import LowRank
from bigmodel_cli.models.quantization.nf4 import NF4, NF4Linear, count_parameters, quantize_nf4
from bigmodel_cli.models.quantization.quantized_weights import QuantizedWeight, unpack_state

DOCS = Path(__file__).parents[2] / "docs"
"""Real text that is always there."""
MARGIN = 0.25
"""The share of an exact base's gain by which one in 4 bits may gain less: a few hundredths of a nat a token."""


def bits(module: nn.Module) -> int:
    """What grows with the weights: not the table of 16 numbers, nor the shape."""
    return 8 * sum(b.nbytes for name, b in module.named_buffers() if name.endswith(("packed", "scale")))


def packed(weight: Tensor, double: bool = False) -> QuantizedWeight:
    return QuantizedWeight(quantize_nf4(weight, double))


def test_the_table_is_the_paper_s() -> None:
    """Quantiles of N(0,1): 8 on the one side, 7 on the other and a zero, as the authors' code takes them."""
    most = (1 - 1 / 32 + 1 - 1 / 30) / 2
    sides = [torch.special.ndtri(torch.linspace(most, 0.5, n, dtype=torch.float64))[:-1] for n in (9, 8)]
    wanted = torch.cat([sides[0], -sides[1], torch.zeros(1, dtype=torch.float64)]).sort().values
    torch.testing.assert_close(torch.tensor(NF4, dtype=torch.float64), wanted / wanted.max(), atol=2e-7, rtol=0)


def test_what_the_table_holds_comes_back_exactly() -> None:
    code = torch.tensor(NF4)
    held = code[torch.cat([torch.tensor([0, 7, 15]).repeat(32), torch.arange(16).repeat(10)])].view(4, 64)
    weight = held * torch.tensor([1.0, 0.5, 4.0, 2.0])[:, None]
    assert torch.equal(packed(weight)(), weight)
    assert torch.equal(packed(torch.zeros(2, 64), double=True)(), torch.zeros(2, 64))


def test_normal_weights_lose_less_than_in_int4_and_take_half_a_byte() -> None:
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    blocks = weight.view(-1, 64)
    step = blocks.abs().amax(1, keepdim=True) / 7
    int4 = ((blocks / step).round() * step).view_as(weight)
    single, double = packed(weight), packed(weight, double=True)
    lost, doubled, whole = (F.mse_loss(x, weight).item() for x in (single(), double(), int4))
    assert lost < 0.85 * whole and doubled < 1.01 * lost
    assert bits(single) / weight.numel() == 4.5
    assert bits(double) / weight.numel() == pytest.approx(4 + 8 / 64 + 32 / 64 / 256, abs=1e-9)
    for one in (single, double):
        state = {f"fc.weight.{key}": value for key, value in one.state_dict().items()} | {"fc.bias": torch.ones(1)}
        plain = unpack_state(state)
        assert set(plain) == {"fc.weight", "fc.bias"} and torch.equal(plain["fc.weight"], one())


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_the_layer_computes_with_the_weight_it_stands_for_and_keeps_none(precision: torch.dtype | None) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(128, 96)
    low_rank = LowRank(layer.weight.detach(), 4, 8.0)
    nn.init.normal_(low_rank.b, std=0.1)
    ours, saved = NF4Linear(layer, True, low_rank), []
    x = torch.randn(2, 5, 128, requires_grad=True)
    learned = [x, low_rank.a, low_rank.b, layer.bias]
    with (
        torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t),
    ):
        y = ours(x)
    found = torch.autograd.grad(y.float().square().sum(), learned)
    wanted_y = F.linear(x, ours.weight, layer.bias)
    wanted = torch.autograd.grad(wanted_y.square().sum(), learned)
    assert y.dtype == (precision or torch.float32) and all(math.prod(shape) < 96 * 128 for shape in saved)
    for one, other in zip((y, *found), (wanted_y, *wanted), strict=True):
        difference = ((one - other).norm() / other.norm()).item()
        assert difference < (1e-5 if precision is None else 0.02)


def recipe(text: str, steps: int, **sections: Any) -> Any:
    options = {"layers": 2, "heads": 2, "width": 64, "position": "rope"}
    values = {
        "model": {"name": "gpt", **options},
        "data": {"name": "text_files", "path": str(DOCS / text), "context": 32},
        "train": {"epochs": 50, "batch_size": 32, "max_steps": steps, **sections.pop("train", {})},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "placement": {"device": "cpu", "precision": "fp32", "compile": "off"},
        **sections,
    }
    return resolve([Layer("t", values)]).recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.pt"
    run = assemble(recipe("text.md", 120), measure=False)
    assert fit(run)
    checkpoint.save(path, run.state())
    return path


def tuning(
    start: Path, kind: str, resumed: Any = None, steps: int = 60, stop_at: int | None = None, **sections: Any
) -> Run:
    section = {"checkpoint": str(start), "method": "lora", "rank": 4, "base": kind}
    hooks = Hooks(should_stop=lambda run: run.progress.step == stop_at)
    return assemble(recipe("finetune.md", steps, start=section, **sections), resumed, measure=False, hooks=hooks)


def val_loss(run: Run) -> float:
    return evaluate(run.eval_model, run.task, run.val, run.placement, 64)["loss"]


def test_a_base_in_4_bits_learns_what_an_exact_one_does(base: Path, tmp_path: Path) -> None:
    gained = {}
    for kind in ("exact", "nf4", "nf4-double"):
        run = tuning(base, kind)
        before, begun = {k: v.clone() for k, v in run.model.state_dict().items()}, val_loss(run)
        assert fit(run)
        gained[kind] = begun - val_loss(run)
        assert gained[kind] > 0.06
        after = run.model.state_dict()
        moved = {k for k in before if not torch.equal(before[k], after[k])}
        assert moved == {k for k, p in run.model.named_parameters() if p.requires_grad}
        assert len(run.frozen.tensors - moved) == len(run.frozen.tensors) > 10
        # Whatever opens the checkpoint gets an ordinary network that answers the same.
        checkpoint.save(tmp_path / "x.pt", run.state())
        trained, tokens = load_trained(tmp_path / "x.pt"), torch.randint(257, (2, 32))
        plain = models.get("gpt")(trained.task.spec, layers=2, heads=2, width=64, position="rope")
        assert set(trained.model.state_dict()) == set(plain.state_dict())
        with torch.inference_mode():
            difference = (trained.model(tokens) - run.model.eval()(tokens)).abs().max()
        assert difference < 1e-5
    whole = sum(p.numel() for p in tuning(base, "exact").model.parameters())
    assert count_parameters(run.model) == whole
    layers = [m for m in run.model.modules() if isinstance(m, NF4Linear)]
    assert len(layers) == 8 and all(bits(m.packed) < 4.2 * math.prod(m.packed.size) for m in layers)
    assert min(gained["nf4"], gained["nf4-double"]) > (1 - MARGIN) * gained["exact"]


def test_resumed_is_the_unbroken_run_and_so_is_its_average(base: Path) -> None:
    train = {"ema_decay": 0.9}
    whole, broken = (tuning(base, "nf4-double", steps=6, stop_at=stop, train=train) for stop in (None, 3))
    assert fit(whole)
    assert not fit(broken)
    resumed = tuning(base, "nf4-double", broken.state(), steps=6, train=train)
    assert fit(resumed) and digest(resumed.model) == digest(whole.model)
    assert whole.ema is not None and resumed.ema is not None
    assert digest(resumed.ema) == digest(whole.ema)
    averages = whole.ema.module.state_dict()
    assert all(torch.equal(averages[key], whole.model.state_dict()[key]) for key in whole.frozen.tensors)


def test_what_has_no_linear_layer_is_refused_and_what_is_no_linear_layer_stays() -> None:
    spec = ImageSpec(1, 8, 8, ("a", "b"))
    with pytest.raises(InputError, match=r"start\.base = nf4: no linear layer"):
        methods.get("lora")(Start(models.get("resnet8")(spec), "fc", lambda path: None, None, None), base="nf4")
    with pytest.raises(InputError, match=r"start\.base = nf4 without adapters"):
        methods.get("dpo")(Start(nn.Linear(64, 64), "head", lambda path: None, None, None), base="nf4")
    encoder = nn.TransformerEncoderLayer(64, 2, 64, batch_first=True, dropout=0.0)
    net = nn.Sequential(nn.Linear(7, 64), encoder, nn.Linear(64, 3))
    net[0].weight.data *= 0  # 7 * 64 weights are whole blocks, yet too few columns for an adapter
    methods.get("lora")(Start(net, "2", lambda path: None, None, None), rank=8, base="nf4")
    kinds = {name: isinstance(m, NF4Linear) for name, m in net.named_modules()}
    assert kinds["0"] and kinds["1.linear1"] and not kinds["1.self_attn.out_proj"] and not kinds["2"]
    assert net[0].low_rank is None and net[1].linear1.low_rank is not None
    x = torch.randn(2, 3, 7)
    net(x).sum().backward()
    assert net[1].linear1.low_rank.b.grad.abs().sum() > 0
    learned = net(x)
    torch.testing.assert_close(net.eval()(x), learned, atol=1e-5, rtol=1e-4)  # torch's fast path reads the weights
