"""Core ML: Apple's format. Its runtime exists only on macOS, so exporting and proving need a Mac."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.runtime import Runtime, import_packages, split_batches

if TYPE_CHECKING:
    from torch import Tensor, nn

RUNTIME = Runtime(
    needs=("coremltools",),
    imports="import coremltools",
    run="""\
model = coremltools.models.MLModel(str(here / "model.mlpackage"))
(name,) = (given.name for given in model.get_spec().description.input)
(logits,) = model.predict({name: x}).values()""",
)


def import_coremltools() -> Any:
    """Import coremltools, on a machine that can run what it writes.

    Raises:
        MachineError: this is not macOS, or the package is not installed.
    """
    if sys.platform != "darwin":
        what = "--format coreml: Core ML models run only on macOS, so an export made here could not be proven"
        raise MachineError(what, hint="export on a Mac, or --format executorch, which phones run too")
    return import_packages("coreml", "coremltools")[0]


def run_coreml(path: Path, build: Callable[[], nn.Module]) -> Run:
    """The package at `path`, run on the CPU, which computes in fp32."""
    package = import_coremltools()
    model = package.models.MLModel(str(path), compute_units=package.ComputeUnit.CPU_ONLY)
    described = model.get_spec().description.input
    names = [given.name for given in described]
    ranges = described[0].type.multiArrayType.shapeRange.sizeRanges
    most = ranges[0].upperBound if ranges else described[0].type.multiArrayType.shape[0]

    def run(*inputs: Any) -> Any:
        (logits,) = model.predict(dict(zip(names, inputs, strict=True))).values()
        return logits

    return split_batches(run, int(most))


@exports.register(suffix=".mlpackage", run=run_coreml, runtime=RUNTIME, sizes="fixed")
def coreml(
    model: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    carry: dict[str, Any],
    *,
    batch: Annotated[int, Field(ge=1)] = 32,
) -> None:
    """An ML program for iOS 17 and macOS 14 (.mlpackage), in fp32; written on macOS only.

    Args:
        batch: the maximum batch size.
    """
    package = import_coremltools()
    import torch

    from bigmodel_cli.export.shapes import dynamic_shapes

    program = torch.export.export(model, example, dynamic_shapes=dynamic_shapes(model, example, batch))
    converted = package.convert(
        program.run_decompositions({}),
        compute_precision=package.precision.FLOAT32,
        minimum_deployment_target=package.target.iOS17,
    )
    converted.user_defined_metadata.update({k: str(v) for k, v in carry.items()})
    converted.save(str(path))
