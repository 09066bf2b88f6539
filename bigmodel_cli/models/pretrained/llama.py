"""Weights in Llama's layout (Touvron et al. 2023; Hugging Face's names) in our model, and back.

Mistral's and other families' of the same names fit as well: rotary positions, RMSNorm, SwiGLU, shared keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.models.pretrained.fused_qkv import joined, parted

JOINED = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.proj": ("self_attn.o_proj",),
    "mixer.gate": ("mlp.gate_proj",),
    "mixer.up": ("mlp.up_proj",),
    "mixer.down": ("mlp.down_proj",),
    "norm1": ("input_layernorm",),
    "norm2": ("post_attention_layernorm",),
}
"""Ours is one matrix where theirs are three (see ``grouped``)."""
TOP = {"token": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}


def is_llama(state: Mapping[str, Tensor]) -> bool:
    return "model.embed_tokens.weight" in state and "model.layers.0.mlp.gate_proj.weight" in state


def from_llama(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Our state dict of a Llama's with so many query heads; where it has no head of its own, that is the embedding.

    Raises:
        InputError: a tensor is missing, or there is one that our model has no place for, or `heads` are not its.
    """
    left = {k: v for k, v in state.items() if not k.endswith("rotary_emb.inv_freq")}
    left.setdefault("lm_head.weight", left["model.embed_tokens.weight"])
    layers = 1 + max(int(found[1]) for k in left if (found := re.match(r"model\.layers\.(\d+)\.", k)))
    wanted = {f"{ours}.weight": [f"{theirs}.weight"] for ours, theirs in TOP.items()}
    for i in range(layers):
        for ours, theirs in JOINED.items():
            for end in ("weight", "bias"):
                names = [f"model.layers.{i}.{name}.{end}" for name in theirs]
                if end == "weight" or any(name in left for name in names):
                    wanted[f"blocks.{i}.{ours}.{end}"] = names
    missing = [name for names in wanted.values() for name in names if name not in left]
    unexpected = sorted(set(left) - {name for names in wanted.values() for name in names})
    if missing or unexpected:
        what = f"{len(missing)} tensors missing, {len(unexpected)} unexpected, e.g. {(missing or unexpected)[0]}"
        raise InputError(what, "expected weights in Llama's layout")
    return {ours: _ours([left[name] for name in names], heads) for ours, names in wanted.items()}


def _ours(parts: list[Tensor], heads: int) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    rows = [len(part) for part in parts]
    head = rows[0] // heads
    if not head or rows[0] % heads or rows[1] % head or heads % (rows[1] // head) or rows[1] != rows[2]:
        raise InputError(f"query, key and value of {rows} rows", f"expected those of {heads} heads and their groups")
    return joined(parts, head)


def to_llama(state: Mapping[str, Tensor], heads: int, groups: int) -> dict[str, Tensor]:
    """The tensors that ``transformers.LlamaForCausalLM`` loads; `groups` key-value heads serve `heads` queries."""
    found = {f"{theirs}.weight": state[f"{ours}.weight"] for ours, theirs in TOP.items()}
    layers = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    for i in range(layers):
        for ours, theirs in JOINED.items():
            for end in ("weight", "bias"):
                whole = state.get(f"blocks.{i}.{ours}.{end}")
                if whole is not None:
                    parts = (whole,) if len(theirs) == 1 else parted(whole, heads, groups)
                    found |= {f"model.layers.{i}.{n}.{end}": p for n, p in zip(theirs, parts, strict=True)}
    return found
