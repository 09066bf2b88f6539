"""Loads published weights from disk, or downloads them from the Hugging Face hub or torchvision and verifies them."""

from __future__ import annotations

import json
import os
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.recipe import Recipe, data_root
from bigmodel_cli.core.registry import models
from bigmodel_cli.data.download import download, open_url
from bigmodel_cli.engine.build.compatibility import check_state_dict, rename
from bigmodel_cli.engine.build.foreign_weights import find_state_dict
from bigmodel_cli.engine.build.load import TrainedModel
from bigmodel_cli.engine.build.locate import check_pin
from bigmodel_cli.engine.build.model import build_model, build_task
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.models.adapters.peft_format import WEIGHTS, Merged, merge_adapter

if TYPE_CHECKING:
    from bigmodel_cli.models.zoo import Weights
from bigmodel_cli.engine.build.hub import HUB, HUB_TIMEOUT, hub_cache


def load_pretrained(recipe: Recipe) -> TrainedModel:
    """The recipe's model with its published weights.

    Raises:
        InputError: no weights are published for it, or they do not fit it.
        MachineError: they are not on disk and cannot be downloaded.
    """
    name = recipe.model.name
    if "load" in models.get(name).meta:
        return _load_with_library(recipe)
    source = models.get(name).meta.get("weights")
    if source is None:
        raise InputError(f"--pretrained: no weights are known for {name}", hint="bigmodel models --search timm:resnet")
    path = weights_file(source, data_root(recipe.data.dir))
    check_pin(path, recipe.start.sha256)
    task, model = build_task(recipe, source.spec), build_model(recipe, source.spec)
    tensors = dict(find_state_dict(checkpoint.read(path), Tensor)[1])
    rename(tensors, models.get(name).meta.get("renames", {}))
    expected = model.state_dict()
    state = {k: v for k, v in tensors.items() if k in expected or not is_auxiliary(k)}
    check_state_dict(expected, state, str(path))
    model.load_state_dict(state)
    return TrainedModel(path, model.eval(), task, recipe, {"recipe": recipe.to_dict()}, {})


def _load_with_library(recipe: Recipe) -> TrainedModel:
    """A model that its own library loads: ``load`` in its registration returns its spec and the model."""
    entry, options = models.get(recipe.model.name), recipe.model.options
    from bigmodel_cli.engine.build.huggingface_hub import base_and_adapter

    folder, adapter = base_and_adapter(options["source"], weights=True)
    context = recipe.data.options.get("context")
    torch.manual_seed(recipe.train.seed)  # of the layers that the weights lack
    loaded = entry.meta["load"](entry.meta["member"], folder, context, options, adapter)
    notes, head = list(loaded.notes), entry.meta["head"] + "."
    new = [name for name in loaded.new if not name.startswith(head)]
    if adapter is not None:
        inner = loaded.model.get_submodule("inner")
        merged = merge_adapter(inner, adapter)
        _check_resized(inner, loaded.resized, merged, adapter)
        new = [name for name in new if name.removeprefix("inner.") not in merged.whole]
        notes.append(merged.note)
    task = build_task(recipe, loaded.spec)
    meta = {"recipe": recipe.to_dict()}
    return TrainedModel(folder, loaded.model.eval(), task, recipe, meta, {}, tuple(notes), tuple(new))


def _check_resized(inner: nn.Module, resized: list[str], merged: Merged, adapter: Path) -> None:
    """Check that the adapter replaced every tensor of its base model that has another shape there.

    Raises:
        InputError: it did not.
    """
    state = inner.state_dict()
    replaced = {state[name].data_ptr() for name in merged.whole}  # a head that is tied to the embedding counts as it
    for name in resized:
        if name in state and state[name].data_ptr() not in replaced:
            what = f"{adapter}: the base model has another number of tokens, and the adapter no {name}"
            raise InputError(what, f"expected {tuple(state[name].shape)} of it in {WEIGHTS}")


def weights_file(source: Weights, root: Path) -> Path:
    """The file of the weights: in our folder, else in the Hugging Face cache, else downloaded into our folder.

    Raises:
        MachineError: they are in neither, and cannot be downloaded.
    """
    name = f"{source.repository}/{source.file}" if source.address else f"{source.repository}.safetensors"
    target = root / "weights" / name
    if target.is_file():
        return target
    cached = sorted(hub_cache().glob(f"models--{source.repository.replace('/', '--')}/snapshots/*/{source.file}"))
    if cached:
        return cached[-1]
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    hint = f"put {source.address or f'{HUB}/{source.repository}/resolve/main/{source.file}'} at {target}"
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise MachineError(f"{target.name}: not on this machine, and this is offline", hint=hint)
    if source.address:
        return download([source.address], target, sha256=source.digest, what=source.file, hint=hint)
    try:
        with open_url(f"{endpoint}/api/models/{source.repository}/revision/main?blobs=true", HUB_TIMEOUT) as reply:
            about = json.loads(reply.read(1 << 22))
        revision, digest = _revision_and_digest(about, source.file)
    except (OSError, HTTPException, ValueError, KeyError) as error:
        reason = str(getattr(error, "reason", error))
        raise MachineError(f"{source.repository}: cannot ask {endpoint} ({reason})", hint=hint) from None
    address = f"{endpoint}/{source.repository}/resolve/{revision}/{source.file}"
    return download([address], target, sha256=digest, what=source.repository, hint=hint)


def is_auxiliary(key: str) -> bool:
    """Whether the tensor belongs to an auxiliary head, which is used in training only (Inception, GoogLeNet)."""
    return key.startswith(("AuxLogits.", "aux1.", "aux2."))


def _revision_and_digest(about: dict[str, Any], file: str) -> tuple[str, str]:
    """The commit and the SHA-256 of `file` that the hub reports."""
    entry = next((f for f in about["siblings"] if f["rfilename"] == file), None)
    if entry is None or "lfs" not in entry:
        raise ValueError(f"it has no {file}")
    return str(about["sha"]), str(entry["lfs"]["sha256"])
