"""ExecuTorch: ``.pte`` for phones and small boards, with XNNPACK kernels. Shapes: B batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.runtime import Runtime, import_packages, split_batches

if TYPE_CHECKING:
    from torch import Tensor, nn

RUNTIME = Runtime(
    needs=("executorch", "torch"),
    imports="import torch\nfrom executorch.runtime import Runtime",
    run="""\
model = Runtime.get().load_program(here / "model.pte").load_method("forward")
logits = model.execute([torch.from_numpy(x)])[0].numpy()""",
)


def run_executorch(path: Path, build: Callable[[], nn.Module]) -> Run:
    """Run the program at `path` with ExecuTorch, splitting a batch to the size its memory was planned for."""
    (runtime,) = import_packages("executorch", "executorch.runtime")
    import torch

    program = runtime.Runtime.get().load_program(path)  # must outlive its method
    method = program.load_method("forward")
    most = method.metadata.input_tensor_meta(0).sizes()[0]

    def run(*inputs: Any, program: Any = program) -> Any:
        return method.execute([torch.from_numpy(x) for x in inputs])[0].numpy().copy()

    return split_batches(run, most)


@exports.register(suffix=".pte", run=run_executorch, runtime=RUNTIME, sizes="fixed")
def executorch(
    model: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    carry: dict[str, Any],
    *,
    batch: Annotated[int, Field(ge=1)] = 32,
) -> None:
    """A program for phones and small boards (.pte), on the XNNPACK backend.

    Args:
        batch: the maximum batch size, for which memory is planned.
    """
    exir, xnnpack = import_packages(
        "executorch", "executorch.exir", "executorch.backends.xnnpack.partition.xnnpack_partitioner"
    )
    import torch

    from bigmodel_cli.export.shapes import dynamic_shapes

    program = torch.export.export(model, example, dynamic_shapes=dynamic_shapes(model, example, batch))
    lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)
