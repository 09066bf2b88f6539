"""AOTInductor: the model compiled to machine code for this kind of processor, to run with torch alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.folder import Run, first_line
from bigmodel_cli.export.runtime import Runtime, run_with_torch

if TYPE_CHECKING:
    from torch import Tensor, nn

RUNTIME = Runtime(
    needs=("torch>=2.11",),
    imports="import torch",
    run="""\
model = torch._inductor.aoti_load_package(str(here / "model.pt2"))
with torch.no_grad():
    logits = model(torch.from_numpy(x)).numpy()""",
)


def run_aoti(path: Path, build: Callable[[], nn.Module]) -> Run:
    """Load the package at `path`. It is native code, so it must come from a trusted source."""
    import torch
    import torch._inductor

    return run_with_torch(torch._inductor.aoti_load_package(str(path)))


@exports.register(suffix=".pt2", run=run_aoti, runtime=RUNTIME)
def aoti(
    model: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    carry: dict[str, Any],
    *,
    freezing: bool = True,
) -> None:
    """Compiled ahead of time for this kind of CPU (AOTInductor); runs from C++ or torch.

    Args:
        freezing: make the weights constants, which kernels can be specialized for.

    Raises:
        MachineError: there is no C++ compiler.
    """
    import torch
    import torch._inductor

    from bigmodel_cli.export.shapes import dynamic_shapes

    program = torch.export.export(model, example, dynamic_shapes=dynamic_shapes(model, example))
    try:
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"freezing": freezing}
        )
    except Exception as error:
        if "compiler" not in str(error).lower():
            raise
        raise MachineError(
            f"--format aoti: {first_line(error)}", hint="install g++ (Debian: apt install g++)"
        ) from None
