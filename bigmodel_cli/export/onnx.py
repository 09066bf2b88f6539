"""ONNX: the format that most runtimes support. Shapes: B batch, K classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.contents import check_onnx
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.runtime import Runtime, import_packages, threads

if TYPE_CHECKING:
    from torch import Tensor, nn

RUNTIME = Runtime(
    needs=("onnxruntime",),
    imports="import onnxruntime",
    run="""\
session = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])
logits = session.run(None, {session.get_inputs()[0].name: x})[0]""",
)


def run_onnx(path: Path, build: Callable[[], nn.Module]) -> Run:
    """Run the file at `path` with onnxruntime on the CPU."""
    (runtime,) = import_packages("onnx", "onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]


@exports.register(suffix=".onnx", run=run_onnx, check=check_onnx, runtime=RUNTIME)
def onnx(
    model: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    carry: dict[str, Any],
    *,
    opset: Annotated[int, Field(ge=18)] = 18,
) -> None:
    """One file with a dynamic batch (and text length), for onnxruntime and most other runtimes.

    Class names and preprocessing are in its metadata.

    Args:
        opset: the ONNX operator set. 18 is the exporter's native one, and older runtimes support it.
    """
    library, _, _ = import_packages("onnx", "onnx", "onnxscript", "onnxruntime")
    import torch

    from bigmodel_cli.export.shapes import dynamic_shapes, input_names

    program = torch.onnx.export(
        model, example, dynamo=True, opset_version=opset, verbose=False, external_data=False,
        input_names=input_names(model, example), output_names=["logits"], dynamic_shapes=dynamic_shapes(model, example),
    )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    for key, value in carry.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    # Saved with onnx itself, since torch's own save puts the weights into a second file.
    library.save(proto, str(path))
    library.checker.check_model(str(path), full_check=True)
