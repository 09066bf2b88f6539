"""LiteRT, formerly TensorFlow Lite: ``.tflite`` for phones and microcontrollers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.runtime import Runtime, import_packages, split_batches, threads

if TYPE_CHECKING:
    from torch import Tensor, nn

RUNTIME = Runtime(
    needs=("ai-edge-litert",),
    imports="from ai_edge_litert.interpreter import Interpreter",
    run="""\
model = Interpreter(model_path=str(here / "model.tflite"))
model.allocate_tensors()
model.set_tensor(model.get_input_details()[0]["index"], x)
model.invoke()
logits = model.get_tensor(model.get_output_details()[0]["index"])""",
)


def run_litert(path: Path, build: Callable[[], nn.Module]) -> Run:
    """Run the file at `path` with LiteRT, one sample per call because its shapes are fixed."""
    (package,) = import_packages("litert", "ai_edge_litert.interpreter")
    model = package.Interpreter(model_path=str(path), num_threads=threads())
    model.allocate_tensors()
    places = sorted(model.get_input_details(), key=lambda given: given["name"])
    answer = model.get_output_details()[0]["index"]

    def run(*inputs: Any) -> Any:
        for place, x in zip(places, inputs, strict=True):
            model.set_tensor(place["index"], x)
        model.invoke()
        return model.get_tensor(answer)

    return split_batches(run, 1)


@exports.register(suffix=".tflite", run=run_litert, runtime=RUNTIME, sizes="fixed")
def litert(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> None:
    """A FlatBuffer for phones and microcontrollers (.tflite), one sample per call."""
    package, _ = import_packages("litert", "litert_torch", "ai_edge_litert.interpreter")
    package.convert(model, tuple(x[:1] for x in example)).export(str(path))
