"""OpenVINO: Intel's runtime, the fastest measured on its CPUs. Shapes: B batch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.contents import check_openvino
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.runtime import Runtime, import_packages, threads

if TYPE_CHECKING:
    from torch import Tensor, nn

RUNTIME = Runtime(
    needs=("openvino>=2024.0",),
    imports="import openvino",
    run="""\
exact = {"INFERENCE_PRECISION_HINT": "f32"}  # some CPUs would compute in bf16
model = openvino.Core().compile_model(here / "model.xml", "CPU", exact)
logits = model([x])[0]""",
)


def import_openvino() -> Any:
    """Import openvino with its telemetry disabled."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_packages("openvino", "openvino")[0]


def run_openvino(path: Path, build: Callable[[], nn.Module]) -> Run:
    """Run the model at `path` on the CPU, in fp32 even where bf16 is available."""
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads(),
    }
    model = import_openvino().Core().compile_model(path, "CPU", hints)
    return lambda *inputs: model(list(inputs))[0]


@exports.register(suffix=".xml", run=run_openvino, check=check_openvino, runtime=RUNTIME)
def openvino(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> None:
    """OpenVINO IR (model.xml and model.bin) in fp32 with a dynamic batch (and text length)."""
    package = import_openvino()
    import torch

    from bigmodel_cli.export.shapes import dynamic_shapes, input_names

    shapes = dynamic_shapes(model, example)
    converted = package.convert_model(torch.export.export(model, example, dynamic_shapes=shapes))
    # The converter makes every dimension dynamic and chooses its own names.
    converted.reshape({
        i: package.PartialShape([-1 if d in shapes[i] else size for d, size in enumerate(x.shape)])
        for i, x in enumerate(example)
    })  # fmt: skip
    for given, name in zip(converted.inputs, input_names(model, example), strict=True):
        given.get_tensor().set_names({name})
    converted.outputs[0].get_tensor().set_names({"logits"})
    for key, value in carry.items():
        converted.set_rt_info(value if isinstance(value, str) else json.dumps(value), ["bigmodel", key])
    package.save_model(converted, path, compress_to_fp16=False)
