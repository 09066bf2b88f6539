"""Published weights: on this machine, or fetched from the Hugging Face hub or torchvision, with their checksum."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.recipe import Recipe, data_root
from bigmodel_cli.core.registry import models
from bigmodel_cli.data.download import download, open_url
from bigmodel_cli.engine.build.compatibility import check_fit
from bigmodel_cli.engine.build.foreign_weights import find_weights
from bigmodel_cli.engine.build.load import Trained
from bigmodel_cli.engine.build.locate import check_pin
from bigmodel_cli.engine.build.model import build_model, build_task
from bigmodel_cli.engine.checkpoint import checkpoint

if TYPE_CHECKING:
    from bigmodel_cli.models.zoo import Weights
from bigmodel_cli.engine.build.hub import HUB, PATIENCE, hub_cache


def load_pretrained(recipe: Recipe) -> Trained:
    """The recipe's model with its published weights, as if it were a checkpoint of ours.

    Raises:
        InputError: no weights are published for it, or they do not fit it.
        MachineError: they are not on this machine, and the hub cannot be reached.
    """
    name = recipe.model.name
    if "load" in models.get(name).meta:
        return _by_library(recipe)
    source = models.get(name).meta.get("weights")
    if source is None:
        raise InputError(f"--pretrained: no weights are known for {name}", hint="bigmodel models --search timm:resnet")
    path = weights_file(source, data_root(recipe.data.dir))
    check_pin(path, recipe.start.sha256)
    task, model = build_task(recipe, source.spec), build_model(recipe, source.spec)
    _, tensors = find_weights(checkpoint.read(path), Tensor)
    ours = model.state_dict()
    state = {k: v for k, v in tensors.items() if k in ours or not auxiliary(k)}
    check_fit(ours, state, str(path))
    model.load_state_dict(state)
    return Trained(path, model.eval(), task, recipe, {"recipe": recipe.to_dict()}, {})


def _by_library(recipe: Recipe) -> Trained:
    """A model whose own library loads it; `load` gives its spec and the model."""
    entry, options = models.get(recipe.model.name), recipe.model.options
    folder = Path(options["source"])
    if not folder.is_dir():
        from bigmodel_cli.engine.build.huggingface_hub import model_of

        _, folder = model_of(f"hf:{options['source']}", weights=True)
    context = recipe.data.options.get("context") or 64
    spec, model = entry.meta["load"](entry.meta["member"], folder, context, options)
    return Trained(folder, model.eval(), build_task(recipe, spec), recipe, {"recipe": recipe.to_dict()}, {})


def weights_file(source: Weights, root: Path) -> Path:
    """Where the weights lie: our folder of them, else the Hugging Face cache, else our folder once they are fetched.

    Raises:
        MachineError: they are in neither, and this is offline.
    """
    name = f"{source.repository}/{source.file}" if source.address else f"{source.repository}.safetensors"
    wanted = root / "weights" / name
    if wanted.is_file():
        return wanted
    cached = sorted(hub_cache().glob(f"models--{source.repository.replace('/', '--')}/snapshots/*/{source.file}"))
    if cached:
        return cached[-1]
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    place = f"put {source.address or f'{HUB}/{source.repository}/resolve/main/{source.file}'} at {wanted}"
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise MachineError(f"{wanted.name}: not on this machine, and this is offline", hint=place)
    if source.address:
        return download([source.address], wanted, sha256=source.digest, what=source.file, hint=place)
    try:
        with open_url(f"{endpoint}/api/models/{source.repository}/revision/main?blobs=true", PATIENCE) as reply:
            about = json.loads(reply.read(1 << 22))
        revision, digest = _pinned(about, source.file)
    except (OSError, ValueError, KeyError) as error:
        reason = str(getattr(error, "reason", error))
        raise MachineError(f"{source.repository}: cannot ask {endpoint} ({reason})", hint=place) from None
    address = f"{endpoint}/{source.repository}/resolve/{revision}/{source.file}"
    return download([address], wanted, sha256=digest, what=source.repository, hint=place)


def auxiliary(key: str) -> bool:
    """Whether the tensor belongs to a second output that helps in training alone (Inception, GoogLeNet)."""
    return key.startswith(("AuxLogits.", "aux1.", "aux2."))


def _pinned(about: dict[str, Any], file: str) -> tuple[str, str]:
    """The commit, and the SHA-256 of `file` in it, that the hub names."""
    entry = next((f for f in about["siblings"] if f["rfilename"] == file), None)
    if entry is None or "lfs" not in entry:
        raise ValueError(f"it has no {file}")
    return str(about["sha"]), str(entry["lfs"]["sha256"])
