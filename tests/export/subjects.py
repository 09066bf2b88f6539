"""Small trained models with samples of their own, to export."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bigmodel_cli.core.registry import exports, models, tasks
from bigmodel_cli.core.types import ImageSpec, Spec, TextSpec
from bigmodel_cli.export.subject import Subject

CLASSES = ("null", "één", "<two>", "3", "4")
IMAGES = ImageSpec(3, 32, 32, CLASSES, (0.5, 0.25, 0.125), (0.1, 0.2, 0.3))
GREY = ImageSpec(1, 28, 28, CLASSES, (0.13,), (0.3,))
SMALL = ImageSpec(1, 2, 2, ("a", "b", "c"), (0.5,), (0.25,))
TEXTS = TextSpec.typical()


def suffix(name: str) -> str:
    return str(exports.get(name).meta["suffix"])


def images(spec: ImageSpec, sizes: tuple[int, ...]) -> list[dict[str, torch.Tensor]]:
    """Batches of these sizes, as raw as a data set gives them; the labels are right by chance alone."""
    draw = torch.Generator().manual_seed(2)
    sides = (spec.square, spec.square) if spec.square else (spec.height, spec.width)
    shape = (spec.channels, *sides)
    return [
        {
            "image": torch.randint(256, (n, *shape), dtype=torch.uint8, generator=draw),
            "label": torch.randint(spec.num_classes, (n,), generator=draw),
            "index": torch.arange(n),
        }
        for n in sizes
    ]


def subject(
    arch: str = "cnn",
    spec: Spec = IMAGES,
    sizes: tuple[int, ...] = (7, 4),
    raw: list[dict[str, torch.Tensor]] | None = None,
    model: nn.Module | None = None,
    **options: Any,
) -> Subject:
    """A model of the registry; its BatchNorm statistics are not the initial ones."""
    torch.manual_seed(1)
    entry = models.get(arch)
    task = tasks.get(entry.meta["task"])(spec, nn.CrossEntropyLoss(reduction="none"), None)
    built = entry(spec, **entry.options(options, "model")) if model is None else model
    if spec.kind == "image" and model is None:
        with torch.no_grad():
            for batch in images(spec, (16, 16, 16)):  # type: ignore[arg-type]
                built.train()(task.prepare(batch)["image"])
    about = {
        "arch": arch, "arch_args": options, "task": task.name, "input": {"kind": spec.kind, **spec.to_dict()},
        "recipe": {"model": {"name": arch, **options}, "data": {"name": "drawn", "dir": None}},
        "checkpoint": {"file": "best.pt"},
    }  # fmt: skip
    given = images(spec, sizes) if raw is None else raw  # type: ignore[arg-type]
    return Subject(built.eval(), task, given, about)
