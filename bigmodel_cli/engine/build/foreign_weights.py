"""Weights that other programs saved, as a start: torchvision's, timm's, or a training script's of one's own.

A file may be a state dict, hold one under a usual name, or be safetensors. Prefixes
that wrappers add are stripped, torchvision's names for a part become ours (which are
timm's), and every tensor is counted: matched, missing, unexpected.
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
from bigmodel_cli.engine.build.compatibility import check_fit
from bigmodel_cli.engine.build.transfer import fit_channels
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.checkpoint.inspect import Contents, inspect_file, require_plain
from bigmodel_cli.engine.checkpoint.safe_pickle import TensorRef
from bigmodel_cli.engine.checkpoint.sharded import is_sharded
from bigmodel_cli.models.layers.meta_init import init_on_meta

CONTAINERS = (
    "model_ema", "state_dict_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "net", "network",
    "module", "weights", "params",
)  # fmt: skip
"""Where training scripts keep the weights, the averaged ones first: those are meant for use."""
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
    """Whether the file at `path` is anything but a checkpoint of ours. Reads its structure alone.

    Raises:
        InputError: it is damaged, or holds more than tensors and plain values.
    """
    if is_sharded(path):
        return False
    found = inspect_file(path)
    require_plain(found)
    values = found.values
    return not (isinstance(values, dict) and values.get("format") == checkpoint.FORMAT)


def architecture(path: Path) -> dict[str, Any]:
    """The model section that a safetensors file of ``bigmodel export`` carries along; empty for any other."""
    metadata = inspect_file(path).metadata
    try:
        arguments = json.loads(metadata.get("arch_args", "{}"))
    except ValueError:
        return {}
    if "arch" not in metadata or not isinstance(arguments, dict):
        return {}
    return {**arguments, "name": metadata["arch"]}


@dataclass(frozen=True)
class Match:
    """Whose tensor is whose: `pairs` maps a name in the model to the name in the file."""

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


def match(theirs: Iterable[str], ours: Iterable[str], head: str) -> Match:
    """Match tensors by name. The head is left out: whose classes a stranger's head tells apart is not known."""
    wanted = {name for name in ours if not name.startswith(head + ".")}
    pairs: dict[str, str] = {}
    unexpected = []
    known = frozenset(ours)
    for key in sorted(theirs, key=len):  # a plain name before the same one under a prefix
        name = _plain(key, known)
        if name in wanted and name not in pairs:
            pairs[name] = key
        elif not name.startswith(head + "."):
            unexpected.append(key)
    return Match(pairs, tuple(sorted(wanted - pairs.keys())), tuple(unexpected))


def _plain(key: str, ours: frozenset[str]) -> str:
    """`key` without the prefixes that wrappers add, and with a part's name as we have it."""
    while key not in ours:
        renamed = key
        for pattern, new in RENAMES:
            renamed = re.sub(pattern, new, renamed)
        if renamed in ours:
            return renamed
        prefix = next((p for p in PREFIXES if key.startswith(p)), None)
        if prefix is None:
            return renamed
        key = key[len(prefix) :]
    return key


def find_weights(values: Any, kind: type) -> tuple[str, dict[str, Any]]:
    """The state dict in a file's values, and under which name it lies; `kind` is what stands for a tensor."""

    def tensors(value: Any) -> dict[str, Any]:
        found = value.items() if isinstance(value, dict) else ()
        return {k: v for k, v in found if isinstance(k, str) and isinstance(v, kind)}

    if isinstance(values, dict):
        for name in CONTAINERS:
            if found := tensors(values.get(name)):
                return name, found
    return "", tensors(values)


def missing_options(recipe: Recipe, given: Iterable[str], spec: Any, path: Path) -> dict[str, Any]:
    """Options of the model that the shapes in the file decide, such as a ResNet's stem; those `given` stay.

    Each choice of each option is tried on the meta device, and kept where more tensors fit.
    """
    contents = inspect_file(path)
    entry, options = models.get(recipe.model.name), dict(recipe.model.options)
    chosen: dict[str, Any] = {}
    best = _fitting(entry, spec, options, contents)
    for name, field in entry.schema.model_fields.items():
        if name in given or get_origin(field.annotation) is not Literal:
            continue
        for choice in get_args(field.annotation):
            fits = _fitting(entry, spec, {**options, **chosen, name: choice}, contents)
            if fits > best:
                best, chosen[name] = fits, choice
    return chosen


def _fitting(entry: Any, spec: Any, options: Mapping[str, Any], contents: Contents) -> int:
    """How many tensors in the file have the name and the shape that the model wants (but for input channels)."""
    theirs = find_weights(contents.values, TensorRef)[1]
    try:
        with init_on_meta():
            ours = entry(spec, **options).state_dict()
    except InputError:
        return -1
    found = match(theirs, ours, entry.meta["head"])
    first = entry.meta["backbone_first"] + ".weight"
    keep = lambda name, shape: tuple(shape[2:] if name == first and len(shape) == 4 else shape)  # noqa: E731
    return sum(keep(a, ours[a].shape) == keep(a, theirs[b].shape) for a, b in found.pairs.items())


def transfer_foreign(model: nn.Module, path: Path, meta: Mapping[str, Any]) -> list[str]:
    """Copy the weights in the file at `path` into `model`, registered with `meta`; a line for each thing to know.

    Raises:
        InputError: they are those of another architecture, or of another size.
    """
    where, theirs = find_weights(checkpoint.read(path), Tensor)
    ours = model.state_dict()
    translated = meta["translate"](theirs, model) if "translate" in meta else None
    if translated is not None:
        return _load_translated(model, translated, path, meta["backbone_first"] + ".weight")
    found = match(theirs, ours, meta["head"])
    parameters = {name for name, _ in model.named_parameters()}
    # A part left at random would spoil the start without a word. Counters of batches may be missing.
    if not found.pairs or any(name in parameters for name in found.missing):
        raise InputError(f"{path}: {found}", "expected all of this model's", f"bigmodel checkpoint show {path}")
    state = {name: theirs[key] for name, key in found.pairs.items()}
    notes = fit_channels(state, ours, meta["backbone_first"] + ".weight")
    for name, tensor in state.items():
        if tensor.shape != ours[name].shape:
            theirs_shape, our_shape = tuple(tensor.shape), tuple(ours[name].shape)
            what = f"{path}: {found.pairs[name]} is {theirs_shape}"
            raise InputError(what, f"the model's is {our_shape}", "another MODEL, or its options with --set model....")
    model.load_state_dict({**ours, **state})
    inside = f" in {where!r}" if where else ""
    return [f"started from {path.name}{inside}: {found}; the head is new", *notes]


def _load_translated(model: nn.Module, state: dict[str, Tensor], path: Path, table: str) -> list[str]:
    """Load weights of a published layout whole, the head too: a vocabulary is no list of classes.

    `table` names the embedding of tokens, whose rows are the vocabulary.

    Raises:
        InputError: they are those of another size.
    """
    ours, notes = model.state_dict(), []
    for name, tensor in state.items():
        # A table of positions that is longer than our context has what we need in its first rows.
        if name.startswith("position.") and name in ours and len(tensor) > len(ours[name]):
            notes.append(f"{name}: the first {len(ours[name])} of {len(tensor)}; data.context takes more")
            state[name] = tensor[: len(ours[name])]
    vocabulary = state[table].shape[0], ours[table].shape[0]
    if vocabulary[0] != vocabulary[1]:
        what = f"{path}: {vocabulary[0]} tokens, the tokenizer has {vocabulary[1]}"
        raise InputError(what, "expected its own", "--set data.tokenizer=PATH of its tokenizer.json, or gpt2")
    check_fit(ours, state, str(path))
    model.load_state_dict(state)
    return [f"started from {path.name}: all {len(state)} tensors", *notes]
