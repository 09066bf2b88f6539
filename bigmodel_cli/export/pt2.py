"""``.pt2``: torch.export's own format, which torch loads without this project."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.runtime import Runtime, run_with_torch

if TYPE_CHECKING:
    from torch import Tensor, nn

CARRIED = "bigmodel.json"
RUNTIME = Runtime(
    needs=("torch>=2.11",),
    imports="import torch",
    run="""\
model = torch.export.load(str(here / "model.pt2")).module()
logits = model(torch.from_numpy(x)).detach().numpy()""",
)


def run_pt2(path: Path, build: Callable[[], nn.Module]) -> Run:
    """Run the file at `path` with torch."""
    import torch

    return run_with_torch(torch.export.load(str(path)).module())


@exports.register(suffix=".pt2", run=run_pt2, runtime=RUNTIME)
def pt2(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> None:
    """A torch.export program with a dynamic batch (and text length), for torch itself.

    Class names and preprocessing are in ``extra_files["bigmodel.json"]``.
    """
    import torch

    from bigmodel_cli.export.shapes import dynamic_shapes

    program = torch.export.export(model, example, dynamic_shapes=dynamic_shapes(model, example))
    # Through memory: on a full disk, torch's own file writer aborts the process from a destructor.
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={CARRIED: json.dumps(carry)})
    path.write_bytes(buffer.getbuffer())
