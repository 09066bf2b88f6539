"""Every registered model: shapes, a training step, initialisation; and torchvision's weights in ours."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models, tasks
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.models.layers.initialise import initialise
from bigmodel_cli.models.layers.meta_init import init_on_meta

GREY = ImageSpec(1, 28, 28, tuple("0123456789"))
COLOUR = ImageSpec(3, 32, 32, ("cat", "dog"))
TINY = ImageSpec(1, 8, 8, tuple("abc"))
PHOTO = ImageSpec(3, 224, 224, tuple(str(i) for i in range(1000)))
IMAGES = [n for n in models.names() if tasks.get(models.get(n).meta["task"]).meta["spec_type"].kind == "image"]


@pytest.mark.parametrize("spec", [GREY, COLOUR, TINY], ids=["28x28", "32x32", "8x8"])
@pytest.mark.parametrize("name", IMAGES)
def test_shapes_and_head(name: str, spec: ImageSpec) -> None:
    entry = models.get(name)
    if name in ("airbench", "dp-cnn") and spec is TINY:
        with pytest.raises(InputError, match="at least 16x16"):
            entry(spec)
        return
    with init_on_meta():
        model = entry(spec).eval()
        logits = model(torch.zeros(2, spec.channels, spec.height, spec.width))
    assert logits.shape == (2, spec.num_classes)
    assert model.get_submodule(entry.meta["head"]).out_features == spec.num_classes
    first = model.get_submodule(entry.meta["backbone_first"])
    assert name == "scatter-linear" or first.weight is not None  # wavelets do not change with the channels


@pytest.mark.parametrize(("stem", "least"), [("auto", 4), ("small", 4), ("imagenet", 63)])
def test_alexnet_names_the_smallest_image(stem: str, least: int) -> None:
    build = models.get("alexnet")
    with init_on_meta():
        for height, width in ((least, least), (least, least + 9)):
            model = build(ImageSpec(2, height, width, ("a", "b")), stem=stem).eval()
            assert model(torch.zeros(1, 2, height, width)).shape == (1, 2)
    with pytest.raises(InputError, match=f"{least + 9}x{least - 1} images; expected at least {least}x{least}"):
        build(ImageSpec(2, least + 9, least - 1, ("a", "b")), stem=stem)


def test_airbench_begins_by_whitening_patches_of_its_train_split(data_dir: Path) -> None:
    values = {"model": {"name": "airbench", "width": 4}, "data": {"name": "mnist", "dir": str(data_dir)}}
    run = assemble(resolve([Layer("test", values)]).recipe, measure=False)
    images = run.task.prepare(run.batches.source.gather(torch.arange(1000)))["image"]
    whiten = run.model.get_submodule("whiten")
    d = len(whiten.get_buffer("directions")) // 2
    with torch.no_grad():
        both = whiten(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(both[:d].cov(), torch.eye(d), atol=0.1, rtol=0)
    torch.testing.assert_close(both[d:], -both[:d])
    assert "whiten.directions" not in dict(run.model.named_parameters())


@pytest.mark.parametrize("name", ["perceptron", "mlp", "cnn", "alexnet", "resnet18", "airbench"])
def test_training_lowers_the_loss(name: str) -> None:
    torch.manual_seed(0)
    model = models.get(name)(GREY, **({"dropout": 0.0} if name == "alexnet" else {}))
    x, y = torch.randn(16, 1, 28, 28), torch.arange(16) % 10
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_state_dict_is_torchvisions(name: str) -> None:
    with init_on_meta():
        ours, theirs = models.get(name)(PHOTO), getattr(torchvision.models, name)()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "resnet50"])
def test_logits_are_torchvisions(name: str) -> None:
    torch.manual_seed(1)
    theirs = getattr(torchvision.models, name)().eval()
    ours = models.get(name)(PHOTO).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "cnn", "alexnet", "resnet18", "resnet50"])
def test_each_activation_module_serves_one_call(name: str) -> None:
    model = models.get(name)(GREY).eval()
    calls: Counter[int] = Counter()
    found = [m for m in model.modules() if isinstance(m, nn.ReLU)]
    for module in found:
        module.register_forward_hook(lambda m, x, y: calls.update([id(m)]))
    model(torch.zeros(1, 1, 28, 28))
    assert found and all(calls[id(m)] == 1 for m in found)


@pytest.mark.parametrize("kind", ["sigmoid", "tanh", "relu", "gelu", "silu"])
def test_activations(kind: str) -> None:
    x = torch.linspace(-3, 3, 13).view(1, 1, 13, 1)
    model = models.get("mlp")(ImageSpec(1, 13, 1, ("a",)), activation=kind, hidden=(13,))
    got = model.get_submodule("activation1")(x)
    expected = getattr(torch, kind, getattr(nn.functional, kind, None))
    assert expected is not None
    torch.testing.assert_close(got, expected(x))


def test_initialisation_follows_its_formula() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(400, 600)
    initialise(layer, "kaiming")
    assert layer.weight.std().item() == pytest.approx((2 / 600) ** 0.5, rel=0.02)
    initialise(layer, "xavier")
    assert layer.weight.std().item() == pytest.approx((2 / 1000) ** 0.5, rel=0.02)
    assert not layer.bias.any()


def test_residual_blocks_start_as_the_identity() -> None:
    block = models.get("resnet18")(GREY).eval().get_submodule("layer1.0")
    x = torch.rand(1, 64, 8, 8)
    torch.testing.assert_close(block(x), x)
