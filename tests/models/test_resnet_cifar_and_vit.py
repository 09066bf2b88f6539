"""The paper's small networks and the vision transformer: sizes, formulas, and timm's weights in ours."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.models.layers.meta_init import init_on_meta
from bigmodel_cli.models.resnet import DropPath

CIFAR = ImageSpec(3, 32, 32, tuple("0123456789"))
DEPTHS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}  # He et al. 2015, Table 6: millions of parameters


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_and_parameters_are_the_papers(depth: int) -> None:
    with init_on_meta():
        residual, plain = models.get(f"resnet{depth}")(CIFAR), models.get(f"plain{depth}")(CIFAR)
    weighted = [m for m in residual.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == depth
    count = sum(p.numel() for p in residual.parameters())
    assert round(count / 1e6, 2 if depth < 110 else 1) == DEPTHS[depth]
    # Option A adds no parameter: the twins differ in nothing but the additions.
    assert {k: v.shape for k, v in residual.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}


@pytest.mark.parametrize("options", [{}, {"preactivation": True}, {"shortcut": "B"}], ids=str)
def test_a_block_whose_branch_is_zero_is_its_shortcut(options: dict[str, object]) -> None:
    model = models.get("resnet8")(CIFAR, **options).eval()
    same, narrower = model.get_submodule("layer1.0"), model.get_submodule("layer2.0")
    last = "conv2" if options.get("preactivation") else "bn2"
    for block in (same, narrower):
        nn.init.zeros_(block.get_submodule(last).weight)
    x = torch.rand(2, 16, 8, 8)
    torch.testing.assert_close(same(x), x)
    if options.get("shortcut") != "B":
        padded = torch.zeros(2, 32, 4, 4)
        padded[:, 8:24] = x[:, :, ::2, ::2]
        torch.testing.assert_close(narrower(x), padded)
    else:
        torch.testing.assert_close(narrower(x), narrower.downsample(x).relu())
    plain = models.get("plain8")(CIFAR).eval().get_submodule("layer1.0")
    nn.init.zeros_(plain.bn2.weight)
    assert not plain(x).any(), "a plain block adds nothing"


def test_stochastic_depth_keeps_the_mean_and_leaves_evaluation_alone() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 3)
    y = drop(x)
    assert sorted(y.unique().tolist()) == pytest.approx([0, 4 / 3]) and (y[:, 0] == y[:, 2]).all()
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x), x)
    for name in ("resnet20", "resnet18", "vit"):
        options = {"zero_init_residual": False} if name == "resnet18" else {}  # else its branches start at zero
        model = models.get(name)(CIFAR, drop_path=0.3, **options)
        rates = [m.p for m in model.modules() if isinstance(m, DropPath)]
        assert rates == sorted(rates) and 0 < rates[0] < rates[-1] == pytest.approx(0.3)
        image = torch.rand(1, 3, 32, 32).expand(8, -1, -1, -1)
        assert model.eval()(image).std(0).max() < 1e-5 < model.train()(image).std(0).max()


def test_the_transformer_is_timms() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=7).eval()
    ours = models.get("vit")(ImageSpec(3, 224, 224, tuple("abcdefg")), depth=12).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_patches_must_tile_the_image() -> None:
    assert models.get("vit")(CIFAR).get_parameter("pos_embed").shape == (1, 65, 192)
    with pytest.raises(InputError, match=r"patches of 5 on 32x32 images; expected model\.patch to be one of 1, 2, 4"):
        models.get("vit")(CIFAR, patch=5)
    with pytest.raises(InputError, match="multiple of the heads"):
        models.get("vit")(CIFAR, heads=5)


@pytest.mark.parametrize("name", ["resnet8", "plain8", "vit"])
def test_training_lowers_the_loss(name: str) -> None:
    torch.manual_seed(0)
    model = models.get(name)(CIFAR)
    x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
