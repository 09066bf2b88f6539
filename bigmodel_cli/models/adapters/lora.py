"""Low-rank adapters (Hu et al. 2021, "LoRA"): a frozen weight W becomes W + (alpha / r) B A, of which B and A train.

They are parametrizations of the weight, not layers around it: whoever reads ``module.weight``
(a convolution with groups, torch's MultiheadAttention) gets the adapted one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bigmodel_cli.models.quantization.fake_quant import round_rows

ORIGINAL = re.compile(r"(?P<module>.*)parametrizations\.(?P<name>\w+)\.original")
START = "method_start"
"""The submodule in which a method keeps what it needs to go on after an interruption; no part of the network."""


class LowRank(nn.Module):
    """W (R, ...) -> W + scale * B A, with A (r, C), B (R, r), C the number of elements of a row of W."""

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
    """(module name, module, weight name) of every linear, convolution and attention weight that `rank` is small for."""
    found = []
    for name, module in model.named_modules():
        key = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        fits = isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention))
        fits |= type(module).__name__ == "Conv1D"  # of GPT-2 in transformers: a linear layer, its matrix transposed
        weight = getattr(module, key, None) if fits else None
        if weight is not None and min(weight.shape[0], weight[0].numel()) > rank:
            found.append((name, module, key))
    return found


def add_adapter(module: nn.Module, key: str, rank: int, alpha: float) -> None:
    """Adapt ``module.<key>``; its tensors then train, the weight itself as ``parametrizations.<key>.original`` not."""
    weight = getattr(module, key)
    parametrize.register_parametrization(module, key, LowRank(weight.detach(), rank, alpha))
    module.parametrizations[key].original.requires_grad_(False)  # type: ignore[index, union-attr]


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without adapters and roundings: each worked into its weight. One without any comes back as it is."""
    plain = {}
    for key, value in state.items():
        found = ORIGINAL.fullmatch(key)
        if found:
            prefix = key.removesuffix("original") + "0."
            if prefix + "levels" in state:
                plain[found["module"] + found["name"]] = round_rows(value, state[prefix + "levels"])
                continue
            product = state[prefix + "scale"] * (state[prefix + "b"] @ state[prefix + "a"])
            plain[found["module"] + found["name"]] = value + product.view(value.shape)
        elif ".parametrizations." not in f".{key}" and not key.startswith(START + "."):
            plain[key] = value
    return plain


def keep(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of `tensors`, kept in `model` (and so in its checkpoints) apart from the network; `merged` drops them."""
    store = nn.Identity()  # a Sequential calls whatever is added to it
    for name, value in tensors.items():
        store.register_buffer(name.replace(".", "/"), value.detach().clone())
    model.add_module(START, store)
    return {name: getattr(store, name.replace(".", "/")) for name in tensors}


@torch.no_grad()
def merge_model(model: nn.Module) -> nn.Module:
    """`model` with its adapters multiplied out, in place."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for key in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, key, leave_parametrized=True)
    return model
