"""``.pt2``: torch.export's own file, which torch loads without this project."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.shapes import free

CARRIED = "bigmodel.json"


def run_pt2(path: Path, build: Callable[[], nn.Module]) -> Callable[..., Tensor]:
    """The file at `path`, run by torch: inputs (B,...) -> logits (B,K)."""
    module = torch.export.load(str(path)).module()
    return lambda *inputs: module(*inputs)  # type: ignore[no-any-return]


@exports.register(suffix=".pt2", run=run_pt2)
def pt2(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> None:
    """The traced graph with a dynamic batch (and length of texts).

    Class names and preprocessing are in ``extra_files["bigmodel.json"]``.
    """
    program = torch.export.export(model, example, dynamic_shapes=free(model, example))
    # Through memory: on a full disk torch's own file writer ends the process, from a destructor.
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={CARRIED: json.dumps(carry)})
    path.write_bytes(buffer.getbuffer())
