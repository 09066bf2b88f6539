"""``hf:FOLDER`` and ``hf:NAME``: a model of transformers on this disk, or fetched from the Hugging Face hub.

Only configuration, tokenizer and safetensors are ever fetched: nothing that could run.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import InputError, MachineError, nearest
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.text_files import read_text
from bigmodel_cli.data.download import open_url
from bigmodel_cli.engine.build.hub import HUB, PATIENCE, hub_cache

NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
SMALL = ["config.json", "tokenizer.json", "tokenizer_config.json"]
WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]


def is_source(name: str) -> bool:
    """Whether a model's name is ``hf:`` and a place, not already a class of transformers."""
    return name.startswith("hf:") and name not in models.members("hf")


def model_of(name: str, weights: bool) -> tuple[dict[str, Any], Path]:
    """The model section that ``hf:FOLDER`` or ``hf:NAME`` stands for, and the folder with its files.

    Raises:
        InputError: it is no model of transformers that we train.
        MachineError: transformers is not installed; or it is neither here nor to be had from the hub.
    """
    from bigmodel_cli.models.transformers_models import CAUSAL, CLASSIFIER, import_transformers, model_names

    if not model_names():
        import_transformers()  # raises the "not installed" error; a working import takes seconds, so it waits till here
    source = name.removeprefix("hf:")
    folder = _folder(source, weights)
    text = read_text(folder / "config.json")
    try:
        values = json.loads(text)
        kinds = [k for k in values["architectures"] if isinstance(k, str)]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{folder / 'config.json'}: it names no architecture", "expected one of transformers"
        ) from None
    kind = next((k for k in kinds if k in model_names()), None)
    if kind is None:
        said = ", ".join(kinds)[:60] or "nothing"
        what = f"hf:{source} is {said}"
        raise InputError(what, f"expected a ...{CAUSAL} or ...{CLASSIFIER}: {nearest(said, model_names())}")
    where = str(folder) if Path(source).expanduser().is_dir() else source
    return {"name": f"hf:{kind}", "config": json.dumps(values, sort_keys=True), "source": where}, folder


def _folder(source: str, weights: bool) -> Path:
    """Where the files of `source` lie on this disk; fetched first where it is a name on the hub."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{path}: no config.json", "expected a folder that save_pretrained wrote")
        return path.absolute()
    if not NAME.fullmatch(source) or source.startswith("."):
        raise InputError(f"hf:{source}: no such folder", "expected a folder, or a name on the hub such as gpt2")
    wanted = [*SMALL, *(WEIGHTS if weights else [])]
    cached = sorted(hub_cache().glob(f"models--{source.replace('/', '--')}/snapshots/*/config.json"))
    if cached and (not weights or any(cached[-1].parent.glob("*.safetensors"))):
        return cached[-1].parent
    return _fetched(source, wanted)


def _fetched(source: str, wanted: list[str]) -> Path:
    """A snapshot from the hub, of the commit that it names now.

    Raises:
        MachineError: offline, by wish or by fate: known within `PATIENCE` seconds.
    """
    hint = f"on a machine with a network: hf download {source} {' '.join(SMALL)}; then hf:FOLDER"
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise MachineError(f"hf:{source}: not on this machine, and this is offline", hint=hint)
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    try:
        with open_url(f"{endpoint}/api/models/{source}", PATIENCE) as reply:
            revision = str(json.loads(reply.read(1 << 22))["sha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(getattr(error, "reason", error))
        raise MachineError(f"hf:{source}: cannot ask {endpoint} ({reason})", hint=hint) from None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=wanted, etag_timeout=PATIENCE))
    except Exception as error:  # the library's own kinds are those of its network stack
        what = f"hf:{source}: {(str(error).strip().splitlines() or ['no answer'])[0][:120]}"
        raise MachineError(what, hint=hint) from None
