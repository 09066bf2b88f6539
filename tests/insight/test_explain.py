"""Explanations against captum, and whether the checks can tell a good explanation from a bad one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.core.registry import explanations, models
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.insight import attribution
from bigmodel_cli.insight.explain.drawing import normalised, overlay, picture
from bigmodel_cli.insight.explain.faithfulness import Judge, randomised, rank_correlation
from bigmodel_cli.insight.explain.neighbours import features, nearest
from bigmodel_cli.insight.explain.subject import Subject, smooth


class Corner(nn.Module):
    """A class that is the light in the upper left quarter of the image, against one that is that of the lower right."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4 * 4, 2)
        weights = torch.zeros(2, 4, 2, 2)
        weights[0, :, 0, 0], weights[1, :, 1, 1] = 6.0, 6.0
        self.conv.weight.data.fill_(1 / 9)
        self.conv.bias.data.zero_()  # type: ignore[union-attr]
        self.head.weight.data.copy_(weights.flatten(1))
        self.head.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.conv(x).relu(), 2).flatten(1))  # type: ignore[no-any-return]


def subject(model: nn.Module, image: Tensor, answer: int = 0, steps: int = 16) -> Subject:
    return Subject(model.eval(), image, answer, lambda y: y.log_softmax(1)[:, answer], torch.zeros_like(image), steps)


def lit() -> Tensor:
    """(1,24,24): light in the corner that counts, and as much in one that does not."""
    image = torch.full((1, 24, 24), 0.05)
    image[0, 2:10, 2:10] = 1.0
    image[0, 2:10, 14:22] = 1.0
    return image


@pytest.mark.parametrize("name", ["integrated-gradients", "occlusion"])
def test_a_method_marks_what_the_answer_is_from_and_passes_its_checks(name: str) -> None:
    found = subject(Corner(), lit())
    method = explanations.get(name)
    heat = method(found)
    assert heat.shape == (24, 24) and float(heat[2:10, 2:10].mean()) > 2 * float(heat[2:10, 14:22].mean())
    judge = Judge(found, lambda y: y.softmax(1)[:, 0])
    checks = judge.judge(heat, method)
    assert checks.insertion > checks.random_insertion and checks.deletion < checks.random_deletion
    worst = judge.judge(-heat, method)  # the same map upside down
    assert len(worst.faults) >= 2 and not worst.to_dict()["faithful"]
    assert worst.insertion < checks.insertion and worst.deletion > checks.deletion


def test_a_map_that_does_not_depend_on_the_model_says_so() -> None:
    """Edges of the image look like an explanation, and are the same for any weights."""

    def edges(found: Subject) -> Tensor:
        return found.image[0] + 0.01 * torch.rand(24, 24, generator=torch.Generator().manual_seed(0))

    found = subject(Corner(), lit())
    checks = Judge(found, lambda y: y.softmax(1)[:, 0]).judge(edges(found), edges)
    assert checks.randomised == pytest.approx(1) and any("random weights" in fault for fault in checks.faults)


def test_randomising_changes_every_weight_and_leaves_the_model() -> None:
    model = Corner()
    before = model.head.weight.clone()
    other = randomised(model, torch.Generator().manual_seed(0))
    assert torch.equal(model.head.weight, before) and not torch.equal(
        dict(other.named_parameters())["head.weight"], before
    )
    assert rank_correlation(torch.arange(64.0).view(8, 8), -torch.arange(64.0).view(8, 8)) == pytest.approx(-1)
    assert rank_correlation(torch.zeros(8, 8), torch.rand(8, 8)) is None


def test_attention_rollout_follows_a_transformer() -> None:
    torch.manual_seed(0)
    spec = ImageSpec(1, 16, 16, ("a", "b"), (0.5,), (0.5,))
    name = next(n for n in models.names() if n.startswith("vit"))
    model = models.get(name)(spec)
    heat = explanations.get("attention-rollout")(subject(model, torch.rand(1, 16, 16)))
    assert heat.shape == (16, 16) and float(heat.std()) > 0 and float(heat.min()) >= 0


def small_net() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5)).eval()


def test_they_are_captums() -> None:
    captum = pytest.importorskip("captum.attr", reason="captum is not installed (pip install captum)")
    model, image = small_net(), torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(2))

    def score(x: Tensor) -> Tensor:
        return model(x).log_softmax(1)[:, 2]

    ours = attribution.integrated_gradients(score, image, torch.zeros_like(image), 50)
    oracle = captum.IntegratedGradients(score)
    theirs = oracle.attribute(image[None], torch.zeros(1, 3, 16, 16), n_steps=50, method="gausslegendre")[0]
    torch.testing.assert_close(ours.values, theirs.float(), atol=1e-4, rtol=0)

    cam = captum.LayerGradCam(model, model[2]).attribute(image[None], target=2, relu_attributions=True)
    expected = F.interpolate(cam, (16, 16), mode="bilinear")[0, 0].detach()
    torch.testing.assert_close(attribution.grad_cam(model, image, 2), expected / expected.max(), atol=1e-4, rtol=0)

    # Without overlap, every patch has the fall of the score that captum finds for it.
    grey = image.mean((1, 2))[:, None, None].expand_as(image)
    blocks = captum.Occlusion(score).attribute(image[None], (3, 4, 4), (3, 4, 4), baselines=grey[None])[0, 0]
    covered = image.clone()
    covered[:, :4, 4:8] = grey[:, :4, 4:8]
    with torch.no_grad():
        fall = float(score(image[None]) - score(covered[None]))
    assert float(blocks[0, 4]) == pytest.approx(fall, abs=1e-4)


def test_the_nearest_are_by_what_the_head_takes() -> None:
    model = Corner().eval()
    images = torch.rand(9, 1, 24, 24, generator=torch.Generator().manual_seed(3))
    vectors = features(model, "head", images)
    assert vectors.shape == (9, 16) and torch.allclose(vectors.norm(dim=1), torch.ones(9))
    best = nearest(vectors[4], vectors, 3)
    assert best[0] == (4, pytest.approx(1.0, abs=1e-5)) and len(best) == 3 and best[1][1] >= best[2][1]


def test_drawings_are_readable() -> None:
    heat = torch.zeros(28, 28)
    heat[10:18, 10:18], heat[0, 0] = 1.0, -1.0
    shown = overlay(torch.full((1, 28, 28), 0.5), smooth(heat))
    assert shown.shape == (3, 320, 320) and shown.dtype == torch.uint8
    middle, edge = shown[:, 160, 160].float(), shown[:, 300, 300].float()
    assert float((middle - edge).abs().max()) > 80  # a person sees where it is
    assert normalised(torch.zeros(4, 4)).abs().max() == 0
    assert picture(torch.rand(3, 640, 480)).shape == (3, 320, 240)
