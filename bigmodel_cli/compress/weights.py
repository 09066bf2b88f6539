"""Weight-only quantization, stored in an ordinary checkpoint. Computation stays in fp32: smaller, but not faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.compress.work import Work
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import compressions
from bigmodel_cli.export.quiet import quiet
from bigmodel_cli.models.quantization.quantized_weights import pack

KINDS = ("image", "text")
Group = Annotated[int, Field(ge=8)]


@compressions.register("bf16", gives="checkpoint", kinds=KINDS)
def bf16(work: Work) -> None:
    """Weights as bfloat16: half the size, fp32's range, 8 bits of precision."""
    _cast(work, torch.bfloat16, "bf16")


@compressions.register("fp16", gives="checkpoint", kinds=KINDS)
def fp16(work: Work) -> None:
    """Weights as float16: half the size, 11 bits of precision; weights beyond 65504 are an error."""
    _cast(work, torch.float16, "fp16")


def _cast(work: Work, dtype: torch.dtype, method: str) -> None:
    state = work.model.state_dict()
    halved = {k: v.to(dtype) if v.dtype == torch.float32 else v for k, v in state.items()}
    lost = [k for k, v in halved.items() if not bool(torch.isfinite(v).all()) and bool(torch.isfinite(state[k]).all())]
    if lost:
        raise InputError(f"{lost[0]}: a weight is too large for {method}", "expected at most 65504", "--method bf16")
    work.write(halved, {"method": method, "final": True})


@compressions.register("int8-weights", gives="checkpoint", kinds=KINDS, needs=("torchao",), extra="compress")
def int8_weights(work: Work) -> None:
    """Linear, convolution and embedding weights as int8, a scale per row (torchao): a quarter of the size."""
    with quiet():  # its import warns
        from torchao.quantization import Int8WeightOnlyConfig

    _quantize(work, lambda columns: Int8WeightOnlyConfig(), {"method": "int8-weights", "final": True})


@compressions.register("int4-weights", gives="checkpoint", kinds=KINDS, needs=("torchao",), extra="compress")
def int4_weights(work: Work, *, group_size: Group = 32) -> None:
    """Weights as 4-bit numbers, a scale per `group_size` of a row (torchao): about an eighth of the size."""
    with quiet():
        from torchao.quantization import IntxWeightOnlyConfig
        from torchao.quantization.granularity import PerGroup

    def config(columns: int) -> Any:
        """The config with the largest group size that divides a row; None if it is below 8."""
        fits = [n for n in range(8, group_size + 1) if columns % n == 0]
        four: Any = torch.int4  # type: ignore[attr-defined]
        return IntxWeightOnlyConfig(weight_dtype=four, granularity=PerGroup(fits[-1])) if fits else None

    _quantize(work, config, {"method": "int4-weights", "final": True, "group_size": group_size})


def _quantize(work: Work, config: Callable[[int], Any], how: dict[str, Any]) -> None:
    """Quantize each weight with torchao's config for its row length; without a config it stays fp32."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
    chosen = {f"{name}.weight".lstrip(".") for name, m in work.model.named_modules() if isinstance(m, layers)}
    stored: dict[str, Tensor] = {}
    parts: dict[int, dict[str, Tensor]] = {}  # tied weights are stored once, under each of their names
    for key, value in work.model.state_dict().items():
        rounding = config(value[0].numel()) if key in chosen else None
        if rounding is None:
            stored[key] = value
            continue
        if value.data_ptr() not in parts:
            parts[value.data_ptr()] = pack(*_round(value.flatten(1), rounding), value.shape)
        stored |= {key + end: part for end, part in parts[value.data_ptr()].items()}
    work.write(stored, how)


def _round(weight: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Round `weight` (O,I) to int8 numbers (O,I) with scales (O,G), symmetric around zero."""
    from torchao.quantization import quantize_

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    quantize_(layer, config)
    rounded: Any = layer.weight
    if bool(rounded.zero_point.any()):
        raise RuntimeError("torchao chose a zero point for a symmetric type")
    return rounded.qdata, rounded.scale
