"""Whether an explanation can be believed: insertion, deletion, and whether it depends on what the model learned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.insight.explain.subject import Subject, smooth

STEPS = 20
"""Steps in which an image is covered or uncovered."""
DRAWS = 6
"""Random orders that an explanation is compared with."""
MOST_CORRELATION = 0.5
"""The rank correlation with the map of a randomised model from which a map is not believed."""

Explain = Callable[[Subject], Tensor]


@dataclass(frozen=True)
class Faithfulness:
    """`insertion` and `deletion`: the mean of what is left of the answer while the image is uncovered, or covered, from
    the most important pixels on (Petsiuk et al. 2018): higher, and lower, is better. `random_insertion` and
    `random_deletion` are those of random orders. `randomised`: the rank correlation with the map for the same model
    with random weights (Adebayo et al. 2018), 0 if the map shows what was learned; None if that map is constant.
    """

    insertion: float
    deletion: float
    random_insertion: float
    random_deletion: float
    randomised: float | None

    @property
    def faults(self) -> list[str]:
        """Why the map should not be believed; empty if nothing was found."""
        found = []
        if self.insertion <= self.random_insertion:
            found.append("uncovering what it marks brings the answer back no sooner than a random order")
        if self.deletion >= self.random_deletion:
            found.append("covering what it marks removes the answer no sooner than a random order")
        if self.randomised is not None and abs(self.randomised) >= MOST_CORRELATION:
            found.append("a model with random weights gets much the same map")
        return found

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "faithful": not self.faults, "faults": self.faults}


class Judge:
    """Judges explanations of one subject; `answer` maps outputs (S,K) to what is left of the answer, (S,) in 0..1."""

    def __init__(self, subject: Subject, answer: Callable[[Tensor], Tensor], seed: int = 0) -> None:
        self.subject, self.answer = subject, answer
        generator = torch.Generator().manual_seed(seed)
        height, width = subject.image.shape[1:]
        cells = min(7, height, width)
        # Random blocks: single pixels at random look like noise, which would be too easy to beat.
        noise = torch.rand(DRAWS, 1, cells, cells, generator=generator)
        orders = F.interpolate(noise, (height, width), mode="nearest")[:, 0]
        orders = orders + 1e-3 * torch.rand(orders.shape, generator=generator)
        scores = [self.insertion_deletion(order) for order in orders]
        self.random = (sum(s[0] for s in scores) / DRAWS, sum(s[1] for s in scores) / DRAWS)
        self.randomised = randomised(subject.model, generator)

    def insertion_deletion(self, heat: Tensor) -> tuple[float, float]:
        """The area under the curve of the answer while pixels come in or go, in the order of `heat`."""
        image = self.subject.image
        blurred = torch.stack([smooth(channel, 0.1) for channel in image])
        grey = torch.zeros_like(image)  # the mean of the training data
        order = heat.flatten().argsort(descending=True, stable=True).to(image.device)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=image.device)
        steps = torch.linspace(0, len(order), STEPS + 1, device=image.device)
        shown = (rank[None] < steps[:, None]).view(-1, 1, *image.shape[1:])
        inserted, deleted = torch.where(shown, image, blurred), torch.where(shown, grey, image)
        with torch.no_grad():
            curves = [self.answer(self._outputs(x)) for x in (inserted, deleted)]
        return tuple(float(torch.trapezoid(c.double()) / STEPS) for c in curves)  # type: ignore[return-value]

    def _outputs(self, images: Tensor) -> Tensor:
        return torch.cat([self.subject.model(part) for part in images.split(8)])

    def judge(self, heat: Tensor, explain: Explain) -> Faithfulness:
        insertion, deletion = self.insertion_deletion(heat)
        other = explain(self.subject.with_model(self.randomised))
        return Faithfulness(insertion, deletion, *self.random, rank_correlation(heat, other))


def randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy of `model` whose parameters of two and more dimensions are random with the same spread; others keep."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.copy_(noise * parameter.std() + parameter.mean())
    return found


def rank_correlation(one: Tensor, other: Tensor) -> float | None:
    """Spearman's correlation of two maps (H,W), read on at most 28x28 places; None if one is constant."""
    from scipy.stats import spearmanr

    size = (min(28, one.shape[0]), min(28, one.shape[1]))
    a, b = (F.adaptive_avg_pool2d(x[None, None].float().cpu(), size).flatten() for x in (one, other))
    if float(a.std()) == 0 or float(b.std()) == 0:
        return None
    value = float(spearmanr(a.numpy(), b.numpy()).statistic)
    return value if value == value else None
