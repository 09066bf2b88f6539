"""ONNX: the format that most runtimes support. Shapes: B batch, K classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.contents import check_onnx
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.runtime import Runtime, import_packages, threads

if TYPE_CHECKING:
    from torch import Tensor, nn

MOST_IN_ONE_FILE = 1_900_000_000
"""Bytes of weights; a protobuf ends at 2 GB. Larger models keep them in a second file."""
RUNTIME = Runtime(
    needs=("onnxruntime>=1.15",),
    imports="import onnxruntime",
    run="""\
session = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])
logits = session.run(None, {session.get_inputs()[0].name: x})[0]""",
)


def lower_ir(proto: Any) -> None:
    """Give `proto` the lowest IR version that has its operator sets, which older runtimes read too.

    The exporter writes the newest, and notes about its own passes that came with it.
    """
    from onnx import helper

    for node in proto.graph.node:
        node.ClearField("metadata_props")
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.ClearField("metadata_props")
    proto.graph.ClearField("metadata_props")
    proto.ir_version = helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True)


@contextmanager
def attention_in_four_dimensions() -> Iterator[None]:
    """Within it, attention with more leading dimensions, as over windows, is computed in four."""
    from torch.nn import functional

    plain = functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *more: Any, **named: Any) -> Tensor:
        masked = any(mask is not None for mask in (*more[:1], named.get("attn_mask")))
        if query.dim() <= 4 or masked:
            return plain(query, key, value, *more, **named)
        first, second, third = (x.flatten(0, -4) for x in (query, key, value))
        return plain(first, second, third, *more, **named).unflatten(0, query.shape[:-3])

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


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

    Raises:
        InputError: the exporter cannot write the model in this operator set.
    """
    library, _, _ = import_packages("onnx", "onnx", "onnxscript", "onnxruntime")
    import torch

    from bigmodel_cli.export.shapes import dynamic_shapes, input_names

    names, shapes = input_names(model, example), dynamic_shapes(model, example)
    with attention_in_four_dimensions():
        program = torch.onnx.export(
            model, example, dynamo=True, opset_version=opset, verbose=False, external_data=False,
            input_names=names, output_names=["logits"], dynamic_shapes=shapes,
        )  # fmt: skip
    assert program is not None
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if held > MOST_IN_ONE_FILE:
        program.save(str(path), external_data=True)  # model.onnx.data, beside it
        proto = library.load(str(path), load_external_data=False)
    else:
        proto = program.model_proto
    written = next(found.version for found in proto.opset_import if not found.domain)
    if written != opset:  # what it cannot convert it leaves as it was
        what = f"export.opset = {opset}: this model can be written in opset {written}"
        raise InputError(what, hint=f"--set export.opset={written}")
    for key, value in carry.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    lower_ir(proto)
    path.write_bytes(proto.SerializeToString())
    library.checker.check_model(str(path), full_check=held <= MOST_IN_ONE_FILE)  # shapes need the whole in memory
