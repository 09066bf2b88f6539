"""Convert GPT-2's published weights (in Hugging Face's naming) to our model, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.models.pretrained.fused_qkv import fuse_qkv, split_qkv

LAYER_NAMES = {
    "ln_1": "norm1", "attn.c_attn": "attention.qkv", "attn.c_proj": "attention.proj",
    "ln_2": "norm2", "mlp.c_fc": "mixer.up", "mlp.c_proj": "mixer.down",
}  # fmt: skip
TRANSPOSED = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""GPT-2's Conv1D computes x W where a linear layer computes x W^T."""


def weight_names(layers: int) -> dict[str, tuple[str, bool]]:
    """Hugging Face's name -> (our name, whether the matrix is transposed)."""
    found = {"wte.weight": ("token.weight", False), "wpe.weight": ("position.weight", False)}
    for end in ("weight", "bias"):
        found[f"ln_f.{end}"] = (f"norm.{end}", False)
        for i in range(layers):
            for theirs, ours in LAYER_NAMES.items():
                found[f"h.{i}.{theirs}.{end}"] = (f"blocks.{i}.{ours}.{end}", theirs in TRANSPOSED and end == "weight")
    return found


def is_gpt2(state: Mapping[str, Tensor]) -> bool:
    return any(prefix + "h.0.attn.c_attn.weight" in state for prefix in ("", "transformer."))


def from_gpt2(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Convert a GPT-2 state dict, as saved by ``transformers``, to ours. Causal masks in it are dropped.

    Raises:
        InputError: tensors are missing or unexpected, or the width is not a multiple of `heads`.
    """
    plain = {k.removeprefix("transformer."): v for k, v in state.items()}
    plain = {k: v for k, v in plain.items() if not k.endswith((".attn.bias", ".attn.masked_bias"))}
    head = plain.pop("lm_head.weight", None)  # absent where it is tied to the embedding
    layers = 1 + max((int(k.split(".")[1]) for k in plain if k.startswith("h.")), default=-1)
    known = weight_names(layers)
    missing, unexpected = sorted(known.keys() - plain.keys()), sorted(plain.keys() - known.keys())
    if missing or unexpected:
        example = (missing or unexpected)[0]
        what = f"{len(missing)} tensors missing, {len(unexpected)} unexpected, e.g. {example}"
        raise InputError(what, "expected the weights of a GPT-2")
    ours = {name: plain[k].t().contiguous() if transposed else plain[k] for k, (name, transposed) in known.items()}
    for name in [n for n in ours if ".qkv." in n]:
        size, rest = divmod(len(ours[name]) // 3, heads)
        if rest:
            raise InputError(f"{name} has {len(ours[name])} rows", f"expected three times those of {heads} heads")
        ours[name] = fuse_qkv(ours[name].chunk(3), size)
    return {**ours, "head.weight": ours["token.weight"] if head is None else head}


def to_gpt2(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Our state dict in the layout of ``transformers.GPT2LMHeadModel``; missing biases become zeros.

    Raises:
        InputError: the model does not fit GPT-2's layout (rotary positions, SwiGLU, grouped queries).
    """
    layers = 1 + max((int(k.split(".")[1]) for k in state if k.startswith("blocks.")), default=-1)
    found = {"lm_head.weight": state["head.weight"]}
    for theirs, (ours, transposed) in weight_names(layers).items():
        tensor = state.get(ours)
        if tensor is None and ours.endswith("bias"):
            weight = state[ours.removesuffix("bias") + "weight"]
            tensor = torch.zeros(weight.shape[0])
        if tensor is None:
            raise InputError(f"the model has no {ours}", "expected GPT-2's layout: position=learned, norm=layer")
        if ".qkv." in ours and tensor.numel() and len(tensor) == 3 * state["token.weight"].shape[1]:
            tensor = torch.cat(split_qkv(tensor, heads, heads))
        found["transformer." + theirs] = tensor.t().contiguous() if transposed else tensor
    for i in range(layers):
        width = found["transformer.wte.weight"].shape[1]
        for part, shape in (("attn.c_attn", (width, 3 * width)), ("mlp.c_fc", (width, 4 * width))):
            got = tuple(found[f"transformer.h.{i}.{part}.weight"].shape)
            if got != shape:
                raise InputError(f"block {i} has {part} of {got}", f"GPT-2's is {shape}: kv_heads=heads, mlp=gelu")
    return found
