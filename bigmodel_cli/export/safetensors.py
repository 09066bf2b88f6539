"""safetensors: the weights with their metadata; the file contains no code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.registry import exports
from bigmodel_cli.export.contents import check_safetensors
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.runtime import Runtime, run_with_torch
from bigmodel_cli.models.layers.meta_init import at_most_parameters, init_on_meta

if TYPE_CHECKING:
    from torch import Tensor, nn

RUNTIME = Runtime(
    needs=("safetensors>=0.5",),
    imports="from safetensors.numpy import load_file",
    # Weights cannot run without the architecture's code, so the example lists the tensors.
    run="""\
tensors = load_file(here / "model.safetensors")
for name, tensor in tensors.items():
    print(f"{name:<48} {tensor.dtype} {tensor.shape}")""",
    answers=False,
)


def run_safetensors(path: Path, build: Callable[[], nn.Module]) -> Run:
    """The architecture from `build` with the weights in the file.

    Raises:
        RuntimeError: they do not fit.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_model

    with safe_open(path, "pt") as file:
        sizes = [torch.Size(file.get_slice(name).get_shape()).numel() for name in file.keys()]  # noqa: SIM118
    held = sum(sizes)
    # A width of a billion in an untrusted export.json must not be allocated, nor as many layers be built.
    with at_most_parameters(2 * len(sizes) + 64, str(path)), init_on_meta():
        wanted = sum(p.numel() for p in build().parameters())
    if wanted > held:
        raise RuntimeError(f"{held} numbers in the file, {wanted} in the architecture that {path.parent} names")
    model = build().eval()
    load_model(model, path)
    return run_with_torch(model)


@exports.register(suffix=".safetensors", run=run_safetensors, check=check_safetensors, runtime=RUNTIME)
def safetensors(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> None:
    """The weights alone, with architecture, class names and preprocessing as JSON metadata."""
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in carry.items()}
    try:
        save_model(model, str(path), metadata={**metadata, "format": "pt"})
    except SafetensorError as error:  # also raised for a full disk
        raise OSError(str(error)) from error
