"""``hf:FOLDER`` and ``hf:NAME``: a model of transformers, on this disk or downloaded from the Hugging Face hub.

Only the configuration, tokenizer and safetensors files are downloaded: nothing that could run code.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import InputError, MachineError, service_reason
from bigmodel_cli.core.readers.text_files import read_text
from bigmodel_cli.core.registry import models
from bigmodel_cli.data.download import open_url
from bigmodel_cli.engine.build.hub import HUB, HUB_TIMEOUT, hub_cache

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
CONFIG_FILES = [
    "config.json", "adapter_config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "*.model", "*.spm",
]  # fmt: skip
KINDS = ("config.json", "adapter_config.json")
"""One of these tells what a folder holds: a model, or an adapter of PEFT."""
WEIGHT_FILES = ["*.safetensors", "*.safetensors.index.json"]


def is_huggingface_source(name: str) -> bool:
    """Whether a model's name is ``hf:`` with a folder or hub name, and not a registered class of transformers."""
    return name.startswith("hf:") and name not in models.members("hf")


def huggingface_model(name: str, weights: bool, task: str = "") -> tuple[dict[str, Any], Path]:
    """The model section for ``hf:FOLDER`` or ``hf:NAME``, and the folder with its files.

    The class is the one that the weights were saved from if it does `task`, the task of the data; otherwise the class
    of the same architecture for it, whose head is new. Without a task it is the saved one.

    Raises:
        InputError: it is not a model of transformers that bigmodel supports, or its architecture cannot do the task.
        MachineError: transformers is not installed, or the model is not on disk and cannot be downloaded.
    """
    from bigmodel_cli.models.pretrained.auto_classes import task_of_class
    from bigmodel_cli.models.pretrained.wrapped import import_transformers
    from bigmodel_cli.models.transformers_models import for_adapter

    if not task_of_class():
        import_transformers()  # raises the "not installed" error; a working import takes seconds, so it waits till here
    source = name.removeprefix("hf:")
    folder, adapter = base_and_adapter(source, weights)
    text = read_text(folder / "config.json")
    try:
        values = json.loads(text)
        saved = [k for k in values.get("architectures") or () if isinstance(k, str)]
        architecture = str(values.get("model_type", ""))
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise InputError(
            f"{folder / 'config.json'}: no architecture named", "expected the config of a transformers model"
        ) from None
    kind = _class_for(f"hf:{source}", saved, architecture, task)
    _check_causal(f"hf:{source}", values, kind)
    values = values if adapter is None else for_adapter(kind, values, adapter)
    path = Path(source).expanduser()
    where = str(path.absolute()) if path.is_dir() else source
    return {"name": f"hf:{kind}", "config": json.dumps(values, sort_keys=True), "source": where}, folder


def _class_for(name: str, saved: list[str], architecture: str, task: str) -> str:
    from bigmodel_cli.models.pretrained.auto_classes import class_for, task_of_class

    tasks = task_of_class()
    known = [k for k in saved if k in tasks]
    if task not in tasks.values():  # of no text at all: whoever checks the task against the data says so
        task = tasks[known[0]] if known else "text_classification"
    kind = next((k for k in known if tasks[k] == task), None) or class_for(architecture, task)
    if kind is None:
        what = f"{name} is {', '.join(saved)[:60] or architecture or 'of no known architecture'}"
        able = sorted({t.replace("_", " ") for t in tasks.values() if class_for(architecture, t)})
        expected = f"an architecture that transformers has for {task.replace('_', ' ')}"
        raise InputError(what, f"expected {expected}" + (f"; it does {', '.join(able)}" if able else ""))
    return kind


def _check_causal(name: str, values: Mapping[str, Any], kind: str) -> None:
    """Refuse an encoder as a language model: it sees the tokens that it should predict."""
    from bigmodel_cli.models.pretrained.auto_classes import class_for, task_of_class

    masked = class_for(str(values.get("model_type")), "masked_language_modeling") is not None
    if task_of_class()[kind] == "language_modeling" and masked and not values.get("is_decoder", False):
        what = f"{name} is an encoder, which sees the tokens that it should predict"
        raise InputError(what, "expected labelled texts for it", '"is_decoder": true in its config.json')


def base_and_adapter(source: str, weights: bool) -> tuple[Path, Path | None]:
    """The folder of the model `source`; and if that is an adapter of PEFT, of its base model, and the adapter's own.

    A base model may be a name on the hub. That of an adapter on this disk may also be a folder, named relative to the
    adapter's own or to the working folder; a file from the hub names no folder here.

    Raises:
        InputError: there is no such folder, or the adapter names no base model that may be used.
        MachineError: one of them is not on this machine and cannot be downloaded.
    """
    from bigmodel_cli.models.adapters.peft_format import is_adapter, read_config

    folder = _local_folder(source, weights)
    if not is_adapter(folder):
        return folder, None
    base = str(read_config(folder)["base_model_name_or_path"])
    beside = folder / base
    if Path(source).expanduser().is_dir():
        found = _local_folder(str(beside) if beside.is_dir() else base, weights)
    else:
        found = _hub_folder(base, f"the base model of hf:{source}", weights)
    if is_adapter(found):
        raise InputError(f"hf:{source}: its base model {base} is an adapter too", "expected a whole model")
    return found, folder


def _local_folder(source: str, weights: bool) -> Path:
    """The folder with the files of `source`; a name on the hub is downloaded unless it is in the cache."""
    path = Path(source).expanduser()
    if not path.is_dir():
        return _hub_folder(source, f"hf:{source}", weights)
    if not any((path / kind).is_file() for kind in KINDS):
        raise InputError(f"{path}: no config.json", "expected a folder that save_pretrained wrote")
    return path.absolute()


def _hub_folder(name: str, what: str, weights: bool) -> Path:
    """The folder with the files of `name` on the hub, `what` in messages; downloaded unless it is in the cache."""
    if not HUB_NAME.fullmatch(name) or name.startswith("."):
        raise InputError(f"{what}: no such folder", "expected a folder, or a name on the hub such as gpt2")
    snapshots = hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots"
    cached = sorted(file for kind in KINDS for file in snapshots.glob(f"*/{kind}"))
    if cached and (not weights or any(cached[-1].parent.glob("*.safetensors"))):
        return cached[-1].parent
    folder = _download(name, [*CONFIG_FILES, *(WEIGHT_FILES if weights else [])])
    if not any((folder / kind).is_file() for kind in KINDS):
        raise InputError(f"hf:{name}: no config.json", "expected a model of transformers, or an adapter of PEFT")
    return folder


def _download(source: str, patterns: list[str]) -> Path:
    """Download a snapshot of the current commit from the hub.

    Raises:
        MachineError: HF_HUB_OFFLINE is set, or the hub does not answer within HUB_TIMEOUT seconds.
    """
    hint = f"on a machine with a network: hf download {source} {' '.join(CONFIG_FILES)}; then hf:FOLDER"
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise MachineError(f"hf:{source}: not on this machine, and this is offline", hint=hint)
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    try:
        with open_url(f"{endpoint}/api/models/{source}", HUB_TIMEOUT) as reply:
            revision = str(json.loads(reply.read(1 << 22))["sha"])
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        reason = str(getattr(error, "reason", error))
        raise MachineError(f"hf:{source}: cannot ask {endpoint} ({reason})", hint=hint) from None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns, etag_timeout=HUB_TIMEOUT))
    except Exception as error:  # the library raises the errors of its network stack
        raise MachineError(f"hf:{source}: {service_reason(error)}", hint=hint) from None
