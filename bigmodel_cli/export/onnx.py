"""ONNX: the format that most runtimes read. Shapes: B batch, K classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.runtime import Runtime, needed, threads

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
    """The file at `path`, run by onnxruntime on the CPU."""
    (runtime,) = needed("onnx", "onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]


@exports.register(suffix=".onnx", run=run_onnx, runtime=RUNTIME)
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
        opset: the ONNX operator set. 18 is what the exporter writes for, and older runtimes read it.
    """
    library, _, _ = needed("onnx", "onnx", "onnxscript", "onnxruntime")
    import torch

    from bigmodel_cli.export.shapes import free, names

    program = torch.onnx.export(
        model, example, dynamo=True, opset_version=opset, verbose=False, external_data=False,
        input_names=names(model, example), output_names=["logits"], dynamic_shapes=free(model, example),
    )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    for key, value in carry.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    # Saved by onnx itself: torch's own save writes weights to a second file beside it.
    library.save(proto, str(path))
    library.checker.check_model(str(path), full_check=True)
