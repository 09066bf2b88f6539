"""Convert weights in Llama's layout (Touvron et al. 2023; Hugging Face's naming) to our model, and back.

Mistral and other families with the same naming work too: rotary positions, RMSNorm, SwiGLU, grouped queries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.models.pretrained.fused_qkv import fuse_qkv, split_qkv

LAYER_NAMES = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.proj": ("self_attn.o_proj",),
    "mixer.gate": ("mlp.gate_proj",),
    "mixer.up": ("mlp.up_proj",),
    "mixer.down": ("mlp.down_proj",),
    "norm1": ("input_layernorm",),
    "norm2": ("post_attention_layernorm",),
}
"""Our name -> theirs. Our fused qkv matrix corresponds to three of theirs (see ``fused_qkv``)."""
MODEL_NAMES = {"token": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}


def is_llama(state: Mapping[str, Tensor]) -> bool:
    return "model.embed_tokens.weight" in state and "model.layers.0.mlp.gate_proj.weight" in state


def from_llama(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Convert a Llama state dict with `heads` query heads to ours. Without a head, the embedding is used (tied).

    Raises:
        InputError: tensors are missing or unexpected, or `heads` does not fit their shapes.
    """
    left = {k: v for k, v in state.items() if not k.endswith("rotary_emb.inv_freq")}
    left.setdefault("lm_head.weight", left["model.embed_tokens.weight"])
    layers = 1 + max(int(found[1]) for k in left if (found := re.match(r"model\.layers\.(\d+)\.", k)))
    wanted = {f"{ours}.weight": [f"{theirs}.weight"] for ours, theirs in MODEL_NAMES.items()}
    for i in range(layers):
        for ours, theirs in LAYER_NAMES.items():
            for end in ("weight", "bias"):
                names = [f"model.layers.{i}.{name}.{end}" for name in theirs]
                if end == "weight" or any(name in left for name in names):
                    wanted[f"blocks.{i}.{ours}.{end}"] = names
    missing = [name for names in wanted.values() for name in names if name not in left]
    unexpected = sorted(set(left) - {name for names in wanted.values() for name in names})
    if missing or unexpected:
        what = f"{len(missing)} tensors missing, {len(unexpected)} unexpected, e.g. {(missing or unexpected)[0]}"
        raise InputError(what, "expected weights in Llama's layout")
    return {ours: _fuse([left[name] for name in names], heads) for ours, names in wanted.items()}


def _fuse(parts: list[Tensor], heads: int) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    rows = [len(part) for part in parts]
    head_dim = rows[0] // heads
    if not head_dim or rows[0] % heads or rows[1] % head_dim or heads % (rows[1] // head_dim) or rows[1] != rows[2]:
        raise InputError(f"query, key and value have {rows} rows", f"expected multiples that fit {heads} heads")
    return fuse_qkv(parts, head_dim)


def to_llama(state: Mapping[str, Tensor], heads: int, groups: int) -> dict[str, Tensor]:
    """Our state dict in the layout of ``transformers.LlamaForCausalLM``, with `groups` key-value heads."""
    found = {f"{theirs}.weight": state[f"{ours}.weight"] for ours, theirs in MODEL_NAMES.items()}
    layers = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    for i in range(layers):
        for ours, theirs in LAYER_NAMES.items():
            for end in ("weight", "bias"):
                whole = state.get(f"blocks.{i}.{ours}.{end}")
                if whole is not None:
                    parts = (whole,) if len(theirs) == 1 else split_qkv(whole, heads, groups)
                    found |= {f"model.layers.{i}.{n}.{end}": p for n, p in zip(theirs, parts, strict=True)}
    return found
