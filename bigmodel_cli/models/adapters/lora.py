"""Low-rank adapters (Hu et al. 2021, "LoRA"): a frozen weight W becomes W + (alpha / r) B A; only A and B train.

An adapter is a parametrization of the weight, not a layer around it. Code that reads ``module.weight``
directly (a grouped convolution, torch's MultiheadAttention) therefore gets the adapted weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bigmodel_cli.models.quantization.fake_quant import fake_quantize_rows

ORIGINAL = re.compile(r"(?P<module>.*)parametrizations\.(?P<name>\w+)\.original")
METHOD_STATE = "method_start"
"""The submodule where a method stores what it needs to resume. It is not part of the network."""


class LowRank(nn.Module):
    """W (R, ...) -> W + scale * B A, with A (r, C) and B (R, r), where C is the number of elements in a row of W."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.a = nn.Parameter(weight.new_empty(rank, columns))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))  # zero: training starts at W itself
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.register_buffer("scale", weight.new_tensor(alpha / rank))
        self.scale: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * (self.b @ self.a)).view(weight.shape)


def weights_to_adapt(model: nn.Module, rank: int) -> list[tuple[str, nn.Module, str]]:
    """(module name, module, weight name) of each linear, convolution and attention weight larger than `rank`."""
    found = []
    for name, module in model.named_modules():
        key = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        fits = isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention))
        fits |= type(module).__name__ == "Conv1D"  # GPT-2 in transformers: a linear layer with a transposed weight
        weight = getattr(module, key, None) if fits else None
        if weight is not None and min(weight.shape[0], weight[0].numel()) > rank:
            found.append((name, module, key))
    return found


def add_adapter(module: nn.Module, key: str, rank: int, alpha: float) -> None:
    """Adapt ``module.<key>``. The adapter trains; the weight, now ``parametrizations.<key>.original``, is frozen."""
    weight = getattr(module, key)
    parametrize.register_parametrization(module, key, LowRank(weight.detach(), rank, alpha))
    module.parametrizations[key].original.requires_grad_(False)  # type: ignore[index, union-attr]


def merge_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge the adapters and fake quantization of a state dict into its weights; a plain one is returned unchanged."""
    plain = {}
    for key, value in state.items():
        found = ORIGINAL.fullmatch(key)
        if found:
            prefix = key.removesuffix("original") + "0."
            if prefix + "levels" in state:
                plain[found["module"] + found["name"]] = fake_quantize_rows(value, state[prefix + "levels"])
                continue
            product = state[prefix + "scale"] * (state[prefix + "b"] @ state[prefix + "a"])
            plain[found["module"] + found["name"]] = value + product.view(value.shape)
        elif ".parametrizations." not in f".{key}" and not key.startswith(METHOD_STATE + "."):
            plain[key] = value
    return plain


def store_method_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of `tensors`, kept in `model` (and so in its checkpoints) apart from the network; `merged` drops them."""
    store = nn.Identity()  # a Sequential calls whatever is added to it
    for name, value in tensors.items():
        store.register_buffer(name.replace(".", "/"), value.detach().clone())
    model.add_module(METHOD_STATE, store)
    return {name: getattr(store, name.replace(".", "/")) for name in tensors}


@torch.no_grad()
def merge_adapters(model: nn.Module) -> nn.Module:
    """Merge the adapters of `model` into its weights, in place."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for key in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, key, leave_parametrized=True)
    return model
