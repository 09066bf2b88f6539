"""Quantization-aware fine-tuning, then int8."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from bigmodel_cli.compress.work import Work, select_method, strip_checkpoint
from bigmodel_cli.core.registry import compressions
from bigmodel_cli.engine.build.load import load_trained


@compressions.register(
    "qat", gives="export", kinds=("image",), needs=("onnx", "onnxscript", "onnxruntime"), extra="onnx"
)
def qat(
    work: Work,
    *,
    epochs: Annotated[int, Field(gt=0)] = 1,
    lr: Annotated[float, Field(gt=0)] = 1e-4,
    batch_size: Annotated[int, Field(gt=0)] = 128,
) -> None:
    """Fine-tune for `epochs` with weights and inputs rounded as in int8, then apply `int8` (Jacob et al. 2017).

    ``bigmodel finetune --method qat`` does only the fine-tuning.
    """
    changes: dict[str, dict[str, Any]] = {
        "start": {"method": "qat"},
        "train": {"epochs": epochs, "batch_size": batch_size},
        "optimizer": {"name": "adamw", "lr": lr},
    }
    best = work.train(work.trained.path, changes, work.out.parent / "run")
    tuned = work.out.parent / "tuned.pt"
    strip_checkpoint(best, tuned, {"method": "qat", "epochs": epochs, "lr": lr})
    trained = load_trained(tuned)
    entry = select_method("int8", trained)
    entry(replace(work, trained=trained), **entry.options({}, "compress"))
