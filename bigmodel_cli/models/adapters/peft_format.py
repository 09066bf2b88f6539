"""Low-rank adapters in the format of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors.

There an adapter of a layer is ``lora_A`` (r, in) and ``lora_B`` (out, r), scaled by alpha / r, and layers that were
trained as a whole lie beside them. Ours are A (r, columns) and B (rows, r) of the weight as it is stored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.text_files import read_text
from bigmodel_cli.models.adapters.lora import ORIGINAL

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.spm")
"""One of these files is in a folder that has a tokenizer of its own."""
TASKS = {
    "language_modeling": "CAUSAL_LM", "text_classification": "SEQ_CLS", "translation": "SEQ_2_SEQ_LM",
}  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """One layer's adapter, of the weight as it is stored: W + scale * B A."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True)
class Merged:
    """What an adapter changed: a line on it, and the names of the tensors that it replaced as a whole."""

    note: str
    whole: frozenset[str]


def adapters_in(state: Mapping[str, Tensor]) -> dict[str, Adapter]:
    """The adapters in a state dict, by the name of their layer."""
    found = {}
    for key in state:
        match = ORIGINAL.fullmatch(key)
        prefix = key.removesuffix("original") + "0."
        if match and match["name"] == "weight" and prefix + "a" in state:
            scale = float(state[prefix + "scale"])
            found[match["module"].removesuffix(".")] = Adapter(state[prefix + "a"], state[prefix + "b"], scale)
    return found


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter, and not a whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def has_tokenizer(folder: Path) -> bool:
    """Whether the adapter in `folder` comes with its own tokenizer: tokens were added for it, or a chat template."""
    return any(True for pattern in VOCABULARIES for _ in folder.glob(pattern))


def rows_of(folder: Path, name: str) -> int | None:
    """The rows of the table `name` that the adapter in `folder` replaces as a whole; None if it replaces none.

    Raises:
        InputError: its weights are damaged.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as tensors:
            found = [key for key in tensors.keys() if _plain(key) == name]  # noqa: SIM118  (no mapping)
            return int(tensors.get_slice(found[0]).get_shape()[0]) if found else None
    except (OSError, SafetensorError, IndexError) as error:
        raise InputError(f"{file}: {str(error)[:120]}", "expected the adapter's weights") from None


def _plain(key: str) -> str:
    """The name in the base model of the tensor `key` of an adapter."""
    return key.removeprefix(PREFIX).replace(".modules_to_save.default", "").replace(".default.weight", ".weight")


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of the adapter in `folder`.

    Raises:
        InputError: it is damaged, or of a kind that is not low rank as it stands.
    """
    try:
        values = json.loads(read_text(folder / CONFIG))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder / CONFIG}: not JSON: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("base_model_name_or_path"), str):
        raise InputError(f"{folder / CONFIG}: it names no base model", "expected base_model_name_or_path")
    if values.get("peft_type") != "LORA" or values.get("use_dora"):
        kind = "DoRA" if values.get("use_dora") else str(values.get("peft_type"))[:40]
        raise InputError(f"{folder / CONFIG}: an adapter of kind {kind}", "expected LoRA")
    return values


def write_adapter(
    folder: Path, model: nn.Module, adapters: Mapping[str, Adapter], whole: Mapping[str, Tensor], task: str, base: str
) -> None:
    """Write `adapters` of `model` and the tensors `whole` of layers trained as a whole, for the model called `base`."""
    tensors: dict[str, Tensor] = {}
    transposed = False
    for name, adapter in adapters.items():
        a, b = adapter.a, adapter.b
        if _is_transposed(model.get_submodule(name)):
            a, b, transposed = b.T, a.T, True
        rank = len(a)
        tensors |= {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
        scale = adapter.scale
    tensors |= {PREFIX + name: value for name, value in whole.items()}
    config = {
        "peft_type": "LORA", "task_type": TASKS[task], "base_model_name_or_path": base, "r": rank,
        "lora_alpha": scale * rank, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": transposed,
        "target_modules": sorted(adapters), "modules_to_save": sorted({n.partition(".")[0] for n in whole}) or None,
        "inference_mode": True,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file({k: v.detach().float().contiguous() for k, v in tensors.items()}, folder / WEIGHTS)


@torch.no_grad()
def merge_adapter(model: nn.Module, folder: Path) -> Merged:
    """Merge the adapter in `folder` into the weights of `model`, in place.

    Raises:
        InputError: it is of another model, or of a kind that cannot be merged.
    """
    config, state = read_config(folder), model.state_dict()
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / WEIGHTS}: {str(error)[:120]}", "expected the adapter's weights") from None
    merged, whole = set[str](), set[str]()
    for key, value in tensors.items():
        name = _plain(key)
        match = KEY.fullmatch(name)
        if match is None:
            _check(state, name, value.shape, folder)
            state[name].copy_(value)
            whole.add(name)
        elif match["side"] == "A":
            layer, weight = match["module"], f"{match['module']}.weight"
            _check(state, weight, None, folder)
            product = tensors[key.replace("lora_A", "lora_B")].float() @ value.float()
            change = _scale(config, layer, len(value)) * product
            change = change.T if _is_transposed(model.get_submodule(layer)) else change
            _check(state, weight, change.shape, folder)
            state[weight].add_(change)
            merged.add(layer)
    note = f"adapter {folder.name} merged into {len(merged)} layers of {config['base_model_name_or_path']}"
    return Merged(note, frozenset(whole))


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """alpha / r, which may differ by layer."""
    size = float(_by_name(config.get("rank_pattern"), layer, config.get("r", rank)))
    alpha = float(_by_name(config.get("alpha_pattern"), layer, config.get("lora_alpha", size)))
    return alpha / (math.sqrt(size) if config.get("use_rslora") else size)


def _by_name(pattern: Any, name: str, default: Any) -> Any:
    """The value for layer `name` in a map of names, or of their ends, to values."""
    found = [v for k, v in (pattern or {}).items() if name == k or name.endswith("." + k)]
    return found[0] if found else default


def _check(state: Mapping[str, Tensor], name: str, shape: Any, folder: Path) -> None:
    if name not in state or (shape is not None and state[name].shape != shape):
        has = tuple(state[name].shape) if name in state else "no such tensor"
        what = f"{folder / WEIGHTS}: {name} is {tuple(shape) if shape is not None else 'adapted'}"
        raise InputError(what, f"the base model has {has}")


def _is_transposed(layer: nn.Module) -> bool:
    """Whether it is GPT-2's linear layer in transformers, whose weight is stored as (in, out)."""
    return type(layer).__name__ == "Conv1D"
