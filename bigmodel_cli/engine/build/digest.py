"""The SHA-256 of a model's tensors, and a check that frozen ones do not change."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import BigmodelError


def digest(model: nn.Module | Mapping[str, Tensor]) -> str:
    """The SHA-256 of the names, shapes, types and bytes of tensors, given as a model or as its state dict."""
    sha = hashlib.sha256()
    state = model.state_dict() if isinstance(model, nn.Module) else model
    for key, tensor in sorted(state.items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        sha.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(flat.numpy().data if flat.numel() else b"")  # no copy: a table may fill half of the memory
    return sha.hexdigest()


@contextlib.contextmanager
def assert_unchanged(model: nn.Module, names: frozenset[str]) -> Iterator[None]:
    """Assert that the block does not change the tensors called `names`.

    Raises:
        BigmodelError: one of them changed. That is a bug, hence exit code 1.
    """
    before = {k: v.detach().clone() for k, v in model.state_dict().items() if k in names}
    yield
    after = model.state_dict()
    changed = [k for k, v in before.items() if not torch.equal(v, after[k])]
    if changed:
        raise BigmodelError(f"{len(changed)} frozen tensors changed, first {changed[0]}")
