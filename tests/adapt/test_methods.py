"""Every fine-tuning method: what trains and what stays, its formula, resuming, and a checkpoint anybody can use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bigmodel_cli.adapt.freeze import units
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import methods, models
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.engine.build.digest import digest
from bigmodel_cli.engine.build.load import load_trained
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.training.assemble import assemble, execute
from bigmodel_cli.engine.training.cached_features import features
from bigmodel_cli.engine.training.loop import fit, train_step
from bigmodel_cli.engine.training.run import Hooks, Run
from bigmodel_cli.models.adapters.lora import merge_adapters, merge_state

OPTIONS = {"freeze-until": {"layer": "layer3"}, "l2-sp": {"alpha": 3.0}, "lora": {"rank": 4}}
STEPPED = [name for name in methods.names() if name != "probe" and "task" not in methods.get(name).meta]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small residual network after three epochs on digits."""
    path = tmp_path_factory.mktemp("base") / "base.pt"
    run = assemble(resolve([Layer("t", {"model": {"name": "resnet8"}, "train": {"epochs": 3}})]).recipe)
    assert fit(run)
    checkpoint.save(path, run.state())
    return path


def tuning(
    base: Path, method: str, resumed: Any = None, epochs: int = 2, stop_at: int | None = None, **options: Any
) -> Run:
    options = {**OPTIONS.get(method, {}), **({"teacher": str(base)} if method == "distill" else {}), **options}
    start = {"checkpoint": str(base), "method": method, **options}
    layers = {"model": {"name": "resnet8"}, "start": start, "train": {"epochs": epochs, "batch_size": 512}}
    hooks = Hooks(should_stop=lambda run: run.progress.step == stop_at)
    return assemble(resolve([Layer("t", layers)]).recipe, resumed, hooks=hooks)


@pytest.mark.parametrize("method", STEPPED)
def test_what_is_frozen_stays_and_all_else_moves(method: str, base: Path, tmp_path: Path) -> None:
    run = tuning(base, method)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    assert fit(run)
    after = run.model.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    trainable = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert not moved & run.frozen.tensors and trainable <= moved
    assert method in ("full", "l2-sp", "distill", "layer-decay", "gradual", "qat") or run.frozen.tensors
    # What is saved loads as the plain network, and answers the same.
    checkpoint.save(tmp_path / "x.pt", run.state())
    trained = load_trained(tmp_path / "x.pt")
    assert set(trained.model.state_dict()) == set(models.get("resnet8")(trained.task.spec).state_dict())
    if method == "qat":  # which rounds inputs as well, while it trains
        for module in run.model.modules():
            module._forward_pre_hooks.clear()
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(trained.model(x), run.model.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["gradual", "qat", "layer-decay", "lora", "l2-sp", "distill", "freeze-until"])
def test_resumed_is_the_unbroken_run(method: str, base: Path) -> None:
    whole, broken = tuning(base, method), tuning(base, method, stop_at=2)
    assert fit(whole)
    assert not fit(broken)
    resumed = tuning(base, method, broken.state())
    assert resumed.progress.step == 2 and fit(resumed)
    assert digest(resumed.model) == digest(whole.model)


def test_the_units_of_a_network_are_its_blocks() -> None:
    spec = ImageSpec(3, 32, 32, ("a", "b"))
    small = units(models.get("resnet8")(spec), "fc")
    assert small == ["conv1", "bn1", "layer1.0", "layer2.0", "layer3.0"]
    assert units(models.get("vit")(spec, depth=2), "head") == [
        "cls_token", "pos_embed", "patch_embed", "blocks.0", "blocks.1", "norm",
    ]  # fmt: skip
    import torchvision

    theirs = torchvision.models.vit_b_16()
    found = units(theirs, "heads.head")
    assert "encoder.layers.encoder_layer_11" in found and "encoder.pos_embedding" in found and "encoder" not in found


def test_layers_thaw_from_the_top(base: Path) -> None:
    run = tuning(base, "gradual", epochs=10, share=0.5)
    trained = []
    for epoch in range(10):
        run.progress.epoch = epoch
        run.train_mode()
        trained.append({n.split(".")[0] for n, p in run.model.named_parameters() if p.requires_grad})
        cold = next(m for m in run.model.modules() if isinstance(m, nn.BatchNorm2d))
        assert cold.training == ("bn1" in trained[-1])
    assert trained[0] == {"fc"} and trained[1] == {"fc", "layer3"} and trained[2] == {"fc", "layer3", "layer2"}
    assert trained[5] == trained[9] == {"fc", "layer3", "layer2", "layer1", "bn1", "conv1"}


def test_lower_layers_learn_slower(base: Path) -> None:
    run = tuning(base, "layer-decay", decay=0.5)
    rate = {id(p): lr for g, lr in zip(run.optimizer.param_groups, run.base_lrs, strict=True) for p in g["params"]}
    of = {n.rsplit(".", 1)[0]: rate[id(p)] for n, p in run.model.named_parameters()}
    top = of["fc"]
    assert of["layer3.0.conv1"] == pytest.approx(top / 2) and of["layer2.0.bn2"] == pytest.approx(top / 4)
    assert of["bn1"] == pytest.approx(top / 16) and of["conv1"] == pytest.approx(top / 32)
    assert sum(len(g["params"]) for g in run.optimizer.param_groups) == len(list(run.model.parameters()))
    decays = {len(g["params"][0].shape) > 1: g["weight_decay"] for g in run.optimizer.param_groups}
    assert decays == {True: 0.01, False: 0.0}, "the groups' other settings stay"


def test_adapters_start_at_the_network_and_merge_into_it(base: Path) -> None:
    run, x = tuning(base, "lora", rank=2, alpha=6.0), torch.randn(2, 1, 8, 8)
    plain = load_trained(base).model
    torch.testing.assert_close(run.model.eval()(x), plain(x))
    assert fit(run)
    state = run.model.state_dict()
    name = "layer2.0.conv2.parametrizations.weight"
    weight = merge_state(state)["layer2.0.conv2.weight"]
    change = (weight - state[name + ".original"]).flatten(1)
    assert torch.linalg.matrix_rank(change, atol=1e-6) == 2
    torch.testing.assert_close(change, 3.0 * state[name + ".0.b"] @ state[name + ".0.a"], atol=1e-6, rtol=1e-4)
    answer = run.model.eval()(x)
    torch.testing.assert_close(merge_adapters(run.model)(x), answer, rtol=1e-4, atol=1e-5)


def test_adapters_reach_attention_and_groups() -> None:
    from bigmodel_cli.core.types import Start

    attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net = nn.Sequential(nn.Conv2d(8, 16, 3, groups=2), nn.Flatten(2), attention, nn.Flatten(), nn.Linear(576, 3))
    net[1].register_forward_hook(lambda module, inputs, y: y.transpose(1, 2))
    decided = methods.get("lora")(Start(net, "4", lambda path: None, None, None), rank=2)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert {
        "4.weight",
        "4.bias",
        "0.parametrizations.weight.0.a",
        "2.self_attn.parametrizations.in_proj_weight.0.b",
    } <= trained
    assert all(".0." in name or name.startswith("4.") for name in trained)
    assert "2.norm1.weight" in decided.frozen.tensors
    net(torch.randn(2, 8, 8, 8)).sum().backward()
    assert net[0].parametrizations.weight[0].b.grad.abs().sum() > 0


def test_options_are_checked(base: Path) -> None:
    with pytest.raises(InputError, match="did you mean layer"):
        tuning(base, "freeze-until", layer="layre3")
    with pytest.raises(InputError, match=r"start\.layer is missing"):
        resolve([Layer("t", {"model": {"name": "mlp"}, "start": {"method": "freeze-until"}})])
    with pytest.raises(InputError, match=r"unknown key start\.rnak; did you mean rank"):
        tuning(base, "lora", rnak=3)
    with pytest.raises(InputError, match="no layer named nowhere to adapt"):
        tuning(base, "lora", layers=("nowhere",))
    # A recipe from before methods had options says the same thing it always did.
    old = {"model": {"name": "mlp"}, "start": {"checkpoint": None, "method": "freeze-backbone"}}
    assert resolve([Layer("old", old)]).recipe.start.method == "freeze-backbone"


def test_the_probe_is_at_its_optimum(base: Path) -> None:
    run = tuning(base, "probe", strengths=(1.0,), max_iter=5000)
    head = run.model.get_submodule("fc")
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    found, _ = features(run)
    x, y = found.vectors, found.labels
    assert execute(run) and run.progress.step == 0 and run.progress.epoch == 1
    assert {k for k, v in run.model.state_dict().items() if not torch.equal(v, before[k])} == {"fc.weight", "fc.bias"}
    # At the optimum of sum CE + |W'|^2 / 2, W' on scaled features, the gradient is zero.
    mean, scale = x.double().mean(0), x.double().std(0).clamp(min=1e-6)
    weight = (head.weight.detach().double() * scale).requires_grad_()
    bias = (head.bias.detach().double() + head.weight.detach().double() @ mean).requires_grad_()
    loss = nn.functional.cross_entropy((x - mean) / scale @ weight.T + bias, y, reduction="sum")
    (loss + weight.square().sum() / 2).backward()
    assert weight.grad is not None and weight.grad.abs().max() < 0.01 * len(y) ** 0.5


def test_staying_near_the_start_costs_what_the_formula_says(base: Path) -> None:
    run = tuning(base, "l2-sp", alpha=2.0, beta=4.0)
    raw = next(run.batches.steps(0))
    batch = run.task.prepare(raw)
    run.model.eval()
    at_start = run.task.loss(run.model, batch)
    plain = run.task.task.loss(run.model, batch)
    head = sum(p.square().sum() for n, p in run.model.named_parameters() if n.startswith("fc."))
    torch.testing.assert_close(at_start.total - plain.total, 4.0 / 2 * head * len(raw["label"]), rtol=1e-3, atol=0.1)
    with torch.no_grad():
        run.model.get_parameter("conv1.weight")[0, 0, 0, 0] += 5
    moved = run.task.loss(run.model, batch).total - run.task.task.loss(run.model, batch).total
    torch.testing.assert_close(
        moved - (at_start.total - plain.total), torch.tensor(25.0) * len(raw["label"]), rtol=1e-3, atol=1
    )


def test_a_student_that_equals_its_teacher_loses_nothing(base: Path, tmp_path: Path) -> None:
    run = tuning(base, "distill", weight=1.0)
    raw = next(run.batches.steps(0))
    from bigmodel_cli.core.types import SampleKey

    batch = run.task.prepare(raw, SampleKey(0, 0, raw["index"]))
    run.model.eval()
    assert run.task.loss(run.model, batch).total.item() == pytest.approx(0, abs=1e-2)
    assert "teacher" not in run.task.prepare(raw), "evaluation asks no teacher"
    train_step(run, raw)
    # Classes go by name: a teacher with its outputs in another order says the same.
    state = checkpoint.load(base)
    order = list(reversed(range(10)))
    names = [str(k) for k in order]
    state["meta"] = {**state["meta"], "classes": names, "input": {**state["meta"]["input"], "classes": names}}
    state["model"] = {k: v[order] if k.startswith("fc.") else v for k, v in state["model"].items()}
    checkpoint.save(tmp_path / "turned.pt", state)
    turned = tuning(base, "distill", teacher=str(tmp_path / "turned.pt"))
    again = turned.task.prepare(raw, SampleKey(0, 0, raw["index"]))["teacher"]
    torch.testing.assert_close(again, batch["teacher"], rtol=1e-4, atol=1e-4)
    names = list("abcdefghij")
    state["meta"] = {**state["meta"], "classes": names, "input": {**state["meta"]["input"], "classes": names}}
    checkpoint.save(tmp_path / "stranger.pt", state)
    with pytest.raises(InputError, match="does not know 0, 1"):
        tuning(base, "distill", teacher=str(tmp_path / "stranger.pt"))


def test_the_command_says_what_trained_and_what_came_of_it(run_cli: Any, base: Path, tmp_path: Path) -> None:
    done = run_cli("finetune", "--from", base, "--lora", 4, "--max-steps", 2, "--out", "lora")
    assert done.returncode == 0, done.stderr
    assert "parameters trained" in done.stdout and "val accuracy" in done.stdout and " -> " in done.stdout
    assert run_cli("eval", "lora").returncode == 0  # its export is proven in test_zoo.py
    both = run_cli("finetune", "--from", base, "--lora", 4, "--freeze-backbone")
    assert both.returncode == 2 and "--freeze-backbone and --lora together" in both.stderr
    unknown = run_cli("finetune", "--from", base, "--method", "lroa")
    assert unknown.returncode == 2 and "unknown fine-tuning method 'lroa'; did you mean lora" in unknown.stderr
