"""Text models through the formats: token ids of any length in, the same logits out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bigmodel_cli.core.registry import exports, models
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.export.proof import export_and_prove

SPEC = TextSpec.typical()
LLAMA = {"layers": 1, "width": 32, "position": "rope", "norm": "rms", "mlp": "swiglu", "kv_heads": 2}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("onnx", "transformer", {"layers": 1, "width": 16}),
    ("pt2", "gpt", LLAMA),
    ("pt2", "text-encoder", {"layers": 1, "width": 16}),
    ("pt2", "text-cnn", {"width": 8, "filters": 4}),
]


@pytest.mark.parametrize(("name", "model", "options"), CASES)
def test_a_file_of_a_text_model_takes_texts_of_any_length(
    name: str, model: str, options: dict[str, Any], tmp_path: Path
) -> None:
    def build() -> nn.Module:
        return models.get(model)(SPEC, **options).eval()  # type: ignore[no-any-return]

    torch.manual_seed(0)
    trained = build()
    sides = 2 if model == "transformer" else 1
    batches = [tuple(torch.randint(4, 256, (5, 20 - 7 * i)) for i in range(sides))]
    batches[0][0][2, 9:] = 0  # fill
    path = tmp_path / f"model{exports.get(name).meta['suffix']}"
    assert export_and_prove(name, trained, batches, path, {}, build).passed
    run = exports.get(name).meta["run"](path, build)
    for length in (1, 64):  # one token, and the whole context
        inputs = tuple(torch.randint(4, 256, (2, length)) for _ in range(sides))
        with torch.inference_mode():
            torch.testing.assert_close(torch.as_tensor(run(*inputs)), trained(*inputs), atol=1e-4, rtol=0)
