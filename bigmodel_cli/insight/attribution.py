"""Attributes a prediction to its input. Shapes: B batch, T tokens, C channels, H height, W width, S steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.core.errors import InputError

Score = Callable[[Tensor], Tensor]
"""Inputs (S,...) -> the explained score (S,): the log-probability of a class."""
MAX_BATCH_ELEMENTS = 1 << 20  # maximum elements per forward pass along the path


@dataclass(frozen=True)
class Attribution:
    """`values` has the input's shape; `score` and `baseline` are the scores of the input and the baseline input.

    Integrated gradients are complete: the values sum to score - baseline, up to `gap`, the integration error.
    Other methods have no baseline (NaN).
    """

    values: Tensor
    score: float
    baseline: float

    @property
    def gap(self) -> float:
        return float(self.values.sum()) - (self.score - self.baseline)


def integrated_gradients(score: Score, x: Tensor, baseline: Tensor, steps: int) -> Attribution:
    """(x - x') times the mean gradient along the straight line from x' to x (Sundararajan et al. 2017, equation 2).

    The mean uses Gauss-Legendre quadrature with `steps` points, exact for polynomials of degree 2 steps - 1.
    `x` and `baseline` are single inputs without a batch dimension.
    """
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(steps)
    positions = torch.as_tensor((nodes + 1) / 2, dtype=x.dtype, device=x.device)
    shares = torch.as_tensor(weights / 2, dtype=x.dtype, device=x.device)
    total = torch.zeros_like(x)
    size = max(1, MAX_BATCH_ELEMENTS // x.numel())
    for a, w in zip(positions.split(size), shares.split(size), strict=True):
        line = baseline + _column(a, x) * (x - baseline)
        line.requires_grad_(True)
        (gradient,) = torch.autograd.grad(score(line).sum(), line)
        total += (_column(w, x) * gradient).sum(0)
    with torch.no_grad():
        ends = score(torch.stack((x, baseline)))
    return Attribution(((x - baseline) * total).detach(), float(ends[0]), float(ends[1]))


def _column(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *(1,) * x.dim())


def token_attributions(
    model: nn.Module, embedding: nn.Module, tokens: Tensor, score: Callable[[Tensor], Tensor], steps: int
) -> Attribution:
    """The attribution (T,) of a score of the model's outputs to each of `tokens` (T,).

    The baseline is zero embeddings; `score` maps outputs of S copies to (S,). The output of the model's own
    `embedding` is replaced along the path, while code that reads the ids (padding masks) sees them unchanged.
    """
    with torch.no_grad():
        x = embedding(tokens)

    def score_along(points: Tensor) -> Tensor:
        with _replaced(embedding, points):
            return score(model(tokens.expand(len(points), -1)))

    found = integrated_gradients(score_along, x, torch.zeros_like(x), steps)
    return Attribution(found.values.sum(-1), found.score, found.baseline)


@contextlib.contextmanager
def _replaced(module: nn.Module, output: Tensor) -> Iterator[None]:
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()


def grad_cam(model: nn.Module, image: Tensor, answer: int) -> Tensor:
    """Grad-CAM (H,W) in 0..1 of class `answer` in `image` (C,H,W), from the last convolution (Selvaraju et al. 2017).

    Its channels are weighted by the mean gradient of the class's logit, summed, and clipped at zero.

    Raises:
        InputError: no convolution of the model outputs a spatial map.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    outputs: list[Any] = []
    handles = [m.register_forward_hook(lambda m, i, out: outputs.append(out)) for m in layers]
    try:
        logits = model(image[None])
    finally:
        for handle in handles:
            handle.remove()
    maps = [m for m in outputs if m.dim() == 4 and min(m.shape[2:]) > 1 and m.requires_grad]
    if not maps:
        what = "grad-cam: no convolution outputs a map larger than one pixel"
        raise InputError(what, hint="--method integrated-gradients")
    (gradient,) = torch.autograd.grad(logits[0, answer], maps[-1])
    activation = (gradient.mean((2, 3), keepdim=True) * maps[-1]).sum(1, keepdim=True).relu()
    heat = F.interpolate(activation, image.shape[1:], mode="bilinear")[0, 0].detach()
    return heat / heat.max().clamp(min=1e-12)
