"""Distillation: trains a smaller architecture on the data and the checkpoint's outputs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bigmodel_cli.compress.work import Work, strip_checkpoint
from bigmodel_cli.core.registry import compressions
from bigmodel_cli.core.resolve import Layer, resolve


@compressions.register("distill", gives="checkpoint", kinds=("image",))
def distill(
    work: Work,
    *,
    model: str = "resnet20",
    epochs: Annotated[int, Field(gt=0)] = 10,
    lr: Annotated[float, Field(gt=0)] = 3e-3,
    temperature: Annotated[float, Field(gt=0)] = 4.0,
    weight: Annotated[float, Field(ge=0, le=1)] = 0.9,
) -> None:
    """Train `model` from scratch with the checkpoint as its teacher (Hinton et al. 2015)."""
    source = work.recipe.to_dict()
    teacher = str(work.trained.path.resolve())
    values = {
        "model": {"name": model},
        "data": source["data"],
        "augment": source["augment"],
        "train": {"epochs": epochs},
        "optimizer": {"name": "adamw", "lr": lr},
        "start": {"method": "distill", "teacher": teacher, "temperature": temperature, "weight": weight},
    }
    best = work.run(resolve([Layer("compress", values)]).recipe, work.out.parent / "run")
    strip_checkpoint(best, work.out, {"method": "distill", "teacher": work.trained.recipe.model.name, "epochs": epochs})
