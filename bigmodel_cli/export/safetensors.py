"""safetensors: the weights alone, with what describes them; nothing in the file can run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bigmodel_cli.core.registry import exports


def run_safetensors(path: Path, build: Callable[[], nn.Module]) -> Callable[..., Tensor]:
    """The architecture from `build` with the weights of the file: inputs (B,...) -> logits (B,K)."""
    from safetensors.torch import load_model

    model = build().eval()
    load_model(model, path)
    return lambda *inputs: model(*inputs)  # type: ignore[no-any-return]


@exports.register(suffix=".safetensors", run=run_safetensors)
def safetensors(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> None:
    """The state dict; architecture, class names and preprocessing in the file's metadata as JSON."""
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in carry.items()}
    try:
        save_model(model, str(path), metadata={**metadata, "format": "pt"})
    except SafetensorError as error:  # a full disk comes as its own kind
        raise OSError(str(error)) from error
