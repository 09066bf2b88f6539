"""Loads weights that other programs saved: torchvision, timm, or a training script.

A file may be a state dict, contain one under a common name, or be safetensors. Prefixes that wrappers add are
removed, torchvision's names are translated to ours (which are timm's), and every tensor is counted as matched,
missing or unexpected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import models
from bigmodel_cli.engine.build.compatibility import check_state_dict
from bigmodel_cli.engine.build.transfer import adapt_input_channels, adapt_positions, first_layers
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.checkpoint.inspect import Contents, inspect_file, require_plain
from bigmodel_cli.engine.checkpoint.sharded import is_sharded
from bigmodel_cli.engine.checkpoint.tensor_refs import TensorRef
from bigmodel_cli.models.layers.initialise import zero_head
from bigmodel_cli.models.layers.meta_init import init_on_meta

CONTAINERS = (
    "model_ema", "state_dict_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "net", "network",
    "module", "weights", "params",
)  # fmt: skip
"""The keys under which training scripts save weights; averaged ones first, which are meant for inference."""
PREFIXES = (
    "module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "network.", "student.", "teacher.", "trunk.",
)  # fmt: skip
RENAMES = (
    # torchvision's VisionTransformer -> timm's, which ours follows
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
)


def is_foreign(path: Path) -> bool:
    """Whether the file at `path` is not a checkpoint of bigmodel. Reads only its structure.

    Raises:
        InputError: it is damaged, or holds anything but tensors and plain values.
    """
    if is_sharded(path):
        return False
    matched = inspect_file(path)
    require_plain(matched)
    values = matched.values
    return not (isinstance(values, dict) and values.get("format") == checkpoint.FORMAT)


def exported_model_section(path: Path) -> dict[str, Any]:
    """The model section in the metadata of a safetensors file from ``bigmodel export``; empty for any other file."""
    metadata = inspect_file(path).metadata
    try:
        arguments = json.loads(metadata.get("arch_args", "{}"))
    except ValueError:
        return {}
    if "arch" not in metadata or not isinstance(arguments, dict):
        return {}
    return {**arguments, "name": metadata["arch"]}


@dataclass(frozen=True)
class NameMatch:
    """Tensors matched by name: `pairs` maps the name in the model to the name in the file."""

    pairs: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.pairs) + len(self.missing)
        parts = [f"{len(self.pairs)} of {total} tensors matched"]
        for word, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            parts.append(
                f"{len(names)} {word}" + (f" ({names[0]}{', ...' if len(names) > 1 else ''})" if names else "")
            )
        return ", ".join(parts)


def match_names(file_tensors: Iterable[str], model_tensors: Iterable[str], head: str) -> NameMatch:
    """Match tensors by name. The head is left out: the classes of a foreign head are unknown."""
    wanted = {name for name in model_tensors if not name.startswith(head + ".")}
    pairs: dict[str, str] = {}
    unexpected = []
    known = frozenset(model_tensors)
    for key in sorted(file_tensors, key=len):  # a plain name before the same one under a prefix
        name = _canonical_name(key, known)
        if name in wanted and name not in pairs:
            pairs[name] = key
        elif not name.startswith(head + "."):
            unexpected.append(key)
    return NameMatch(pairs, tuple(sorted(wanted - pairs.keys())), tuple(unexpected))


def _canonical_name(key: str, model_tensors: frozenset[str]) -> str:
    """`key` without the prefixes that wrappers add, translated to our names."""
    while key not in model_tensors:
        renamed = key
        for pattern, new in RENAMES:
            renamed = re.sub(pattern, new, renamed)
        if renamed in model_tensors:
            return renamed
        prefix = next((p for p in PREFIXES if key.startswith(p)), None)
        if prefix is None:
            return renamed
        key = key[len(prefix) :]
    return key


def find_state_dict(values: Any, kind: type) -> tuple[str, dict[str, Any]]:
    """The key of the state dict in a file's values ("" for the top level), and the state dict.

    `kind` is the class of its tensors: Tensor, or TensorRef in an inspected file.
    """

    def tensors(value: Any) -> dict[str, Any]:
        matched = value.items() if isinstance(value, dict) else ()
        return {k: v for k, v in matched if isinstance(k, str) and isinstance(v, kind)}

    if isinstance(values, dict):
        for name in CONTAINERS:
            if matched := tensors(values.get(name)):
                return name, matched
    return "", tensors(values)


def infer_options(recipe: Recipe, fixed: Iterable[str], spec: Any, path: Path) -> dict[str, Any]:
    """Infer options of the model from the shapes in the file, such as a ResNet's stem; those in `fixed` stay.

    Each choice of each option is built on the meta device, and kept where more tensors fit.
    """
    contents = inspect_file(path)
    entry, options = models.get(recipe.model.name), dict(recipe.model.options)
    chosen: dict[str, Any] = {}
    best = _count_fitting(entry, spec, options, contents)
    for name, field in entry.schema.model_fields.items():
        if name in fixed or get_origin(field.annotation) is not Literal:
            continue
        for choice in get_args(field.annotation):
            fitting = _count_fitting(entry, spec, {**options, **chosen, name: choice}, contents)
            if fitting > best:
                best, chosen[name] = fitting, choice
    return chosen


def _count_fitting(entry: Any, spec: Any, options: Mapping[str, Any], contents: Contents) -> int:
    """How many tensors of the model are in the file with the same shape, input channels aside."""
    file_tensors = find_state_dict(contents.values, TensorRef)[1]
    try:
        with init_on_meta():
            model_tensors = entry(spec, **options).state_dict()
    except InputError:
        return -1
    matched = match_names(file_tensors, model_tensors, entry.meta["head"])
    first = first_layers(entry.meta)
    comparable = lambda name, shape: tuple(shape[2:] if name in first and len(shape) == 4 else shape)  # noqa: E731
    return sum(
        comparable(a, model_tensors[a].shape) == comparable(a, file_tensors[b].shape) for a, b in matched.pairs.items()
    )


def load_foreign_weights(model: nn.Module, path: Path, meta: Mapping[str, Any], channels: int = 0) -> list[str]:
    """Load the weights in the file at `path` into `model`, registered with `meta`; returns notes for the user.

    `channels` are those of the model's images, if it takes images.

    Raises:
        InputError: the weights are of another architecture or size.
    """
    container, file_tensors = find_state_dict(checkpoint.read(path), Tensor)
    model_tensors = model.state_dict()
    translated = meta["translate"](file_tensors, model) if "translate" in meta else None
    if translated is not None:
        return _load_translated(model, translated, path, meta["backbone_first"] + ".weight")
    matched = match_names(file_tensors, model_tensors, meta["head"])
    parameters = {name for name, _ in model.named_parameters()}
    # A parameter left at random would silently spoil the start. BatchNorm's counters may be missing.
    if not matched.pairs or any(name in parameters for name in matched.missing):
        raise InputError(f"{path}: {matched}", "expected all of this model's", f"bigmodel checkpoint show {path}")
    state = {name: file_tensors[key] for name, key in matched.pairs.items()}
    notes = adapt_input_channels(state, model_tensors, meta, channels)
    notes += adapt_positions(state, model, meta)
    for name, tensor in state.items():
        if tensor.shape != model_tensors[name].shape:
            file_shape, model_shape = tuple(tensor.shape), tuple(model_tensors[name].shape)
            what = f"{path}: {matched.pairs[name]} is {file_shape}"
            raise InputError(
                what, f"the model's is {model_shape}", "another MODEL, or its options with --set model...."
            )
    model.load_state_dict({**model_tensors, **state})
    zero_head(model, meta["head"])
    inside = f" in {container!r}" if container else ""
    return [f"started from {path.name}{inside}: {matched}; the head is new", *notes]


def _load_translated(model: nn.Module, state: dict[str, Tensor], path: Path, table: str) -> list[str]:
    """Load translated weights with their head: unlike classes, a vocabulary is known by its tokenizer.

    `table` names the embedding of tokens, whose rows are the vocabulary.

    Raises:
        InputError: they are of another size.
    """
    model_tensors, notes = model.state_dict(), []
    for name, tensor in state.items():
        # A position table longer than our context is used by its first rows.
        if name.startswith("position.") and name in model_tensors and len(tensor) > len(model_tensors[name]):
            notes.append(f"{name}: the first {len(model_tensors[name])} of {len(tensor)}; data.context takes more")
            state[name] = tensor[: len(model_tensors[name])]
    vocabulary = state[table].shape[0], model_tensors[table].shape[0]
    if vocabulary[0] != vocabulary[1]:
        what = f"{path}: {vocabulary[0]} tokens, the tokenizer has {vocabulary[1]}"
        raise InputError(what, "expected its own", "--set data.tokenizer=PATH of its tokenizer.json, or gpt2")
    check_state_dict(model_tensors, state, str(path))
    model.load_state_dict(state)
    return [f"started from {path.name}: all {len(state)} tensors", *notes]
