"""Methods that explain the answer for an image. Each takes a subject and returns a map (H,W), positive for evidence.

One that cannot explain the model raises an InputError that says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import explanations
from bigmodel_cli.insight import attribution
from bigmodel_cli.insight.explain.subject import Subject, enlarged, smooth

PATCHES, STRIDES = 7, 2
"""Patches of occlusion along a side, and their places in the width of one."""


@explanations.register("integrated-gradients", order=2, integrates=True)
def integrated_gradients(subject: Subject) -> Tensor:
    """Gradients along the way from a black image, times the image (Sundararajan et al. 2017), summed and smoothed."""

    def score(images: Tensor) -> Tensor:
        return subject.score(subject.model(images))

    found = attribution.integrated_gradients(score, subject.image, subject.black, subject.steps)
    return smooth(found.values.sum(0))


@explanations.register("grad-cam", order=1)
def grad_cam(subject: Subject) -> Tensor:
    """Channels of the last convolution by their mean gradient (Selvaraju et al. 2017): coarse, evidence for only."""
    return attribution.grad_cam(subject.model, subject.image, subject.answer)


@explanations.register("occlusion", order=3)
def occlusion(subject: Subject) -> Tensor:
    """How far the score falls when a patch is covered with the image's mean colour (Zeiler and Fergus 2014)."""
    image = subject.image
    height, width = image.shape[1:]
    h, w = max(1, -(-height // PATCHES)), max(1, -(-width // PATCHES))
    grey = image.mean((1, 2))[:, None, None]
    rows, columns = (_starts(side, patch) for side, patch in ((height, h), (width, w)))
    places = [(y, x) for y in rows for x in columns]
    covered = image.expand(len(places), -1, -1, -1).clone()
    for i, (y, x) in enumerate(places):
        covered[i, :, y : y + h, x : x + w] = grey
    with torch.no_grad():
        fall = subject.scores(image[None]) - subject.scores(covered)
    total, times = torch.zeros(height, width), torch.zeros(height, width)
    for (y, x), value in zip(places, fall.cpu(), strict=True):
        total[y : y + h, x : x + w] += value
        times[y : y + h, x : x + w] += 1
    return smooth(total / times, 0.05)


def _starts(side: int, patch: int) -> list[int]:
    step = max(1, patch // STRIDES)
    return sorted({*range(0, side - patch + 1, step), side - patch})


@explanations.register("attention-rollout", order=4)
def attention_rollout(subject: Subject) -> Tensor:
    """Attention of all layers multiplied, with its residuals (Abnar and Zuidema 2020). It does not know the answer."""
    with torch.no_grad(), _Attention() as seen:
        subject.model(subject.image[None])
    if not seen.maps:
        raise InputError("attention-rollout: the model has no attention", hint="--method occlusion")
    tokens = seen.maps[-1].shape[-1]
    flow = torch.eye(tokens)
    for attention in seen.maps:
        if attention.shape != (tokens, tokens):
            raise InputError("attention-rollout: the number of tokens changes", hint="--method occlusion")
        step = 0.5 * attention.cpu() + 0.5 * torch.eye(tokens)
        flow = step @ flow
    side = int(tokens**0.5)
    extra = tokens - side * side
    if side < 2:
        raise InputError("attention-rollout: the tokens are no patches of an image", hint="--method occlusion")
    to_patches = (flow[0] if extra else flow.mean(0))[extra:]
    return enlarged(to_patches.view(side, side), (subject.image.shape[1], subject.image.shape[2])).clamp(min=0)


class _Attention(TorchFunctionMode):
    """Collects the mean attention over the heads (T,T) of every layer that calls scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            q, k = args[0], args[1]
            weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
            if weights.dim() == 4 and len(weights) == 1:
                self.maps.append(weights[0].mean(0))
        return func(*args, **(kwargs or {}))
