"""TorchScript: the predecessor of torch.export, for programs that still load it; torch may drop it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.runtime import Runtime, run_with_torch

if TYPE_CHECKING:
    from torch import Tensor, nn

RUNTIME = Runtime(
    needs=("torch>=2.11",),
    imports="import torch",
    run="""\
model = torch.jit.load(here / "model.ts")
with torch.no_grad():
    logits = model(torch.from_numpy(x)).numpy()""",
)


def _jit() -> Any:
    import torch

    if not hasattr(torch.jit, "trace"):
        raise MachineError(f"torch {torch.__version__} no longer has TorchScript", hint="--format pt2")
    return torch.jit


def run_torchscript(path: Path, build: Callable[[], nn.Module]) -> Run:
    """Run the program at `path` with torch."""
    from bigmodel_cli.export.quiet import quiet

    with quiet():  # a deprecation warning
        return run_with_torch(_jit().load(path))


@exports.register(suffix=".ts", run=run_torchscript, runtime=RUNTIME)
def torchscript(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> None:
    """A frozen trace, for programs that still load TorchScript.

    Class names and preprocessing are in ``_extra_files["bigmodel.json"]``.
    """
    jit = _jit()
    program = jit.freeze(jit.trace(model, example))
    buffer = io.BytesIO()  # on a full disk, torch's own file writer aborts the process
    jit.save(program, buffer, _extra_files={"bigmodel.json": json.dumps(carry)})
    path.write_bytes(buffer.getbuffer())
