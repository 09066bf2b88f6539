"""ONNX: the format that most runtimes read. Shapes: B batch, K classes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.shapes import free, names


def needed(*packages: str) -> list[Any]:
    """The modules called `packages`.

    Raises:
        MachineError: one of them is not installed; the extra is named.
    """
    found = []
    for package in packages:
        try:
            found.append(importlib.import_module(package))
        except ImportError as error:
            raise MachineError(f"--format onnx needs {package}: {error}", hint="pip install 'bigmodel[onnx]'") from None
    return found


def run_onnx(path: Path, build: Callable[[], nn.Module]) -> Callable[..., Tensor]:
    """The file at `path`, run by onnxruntime on the CPU: inputs (B,...) -> logits (B,K)."""
    (runtime,) = needed("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *inputs: torch.from_numpy(
        session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})[0]
    )


@exports.register(suffix=".onnx", run=run_onnx)
def onnx(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any], *, opset: int = 18) -> None:
    """One file with a dynamic batch (and length of texts); class names and preprocessing are in its metadata.

    Args:
        opset: the ONNX operator set. 18 is what the exporter writes for, and older runtimes read it.
    """
    library, _, _ = needed("onnx", "onnxscript", "onnxruntime")
    program = torch.onnx.export(
        model, example, dynamo=True, opset_version=opset, verbose=False, input_names=names(model, example),
        output_names=["logits"], dynamic_shapes=free(model, example),
    )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    for key, value in carry.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    # Saved by onnx itself: torch's own save writes weights to a second file beside it.
    library.save(proto, str(path))
    library.checker.check_model(str(path), full_check=True)
