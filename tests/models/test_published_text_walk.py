"""Every fine-tuning method on published text models: BERT with a new head, GPT-2, T5, and our own gpt."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from figures import share_of_pairs
from finetuned import METHODS, learns_ships_and_goes_on, task_of

transformers = pytest.importorskip("transformers")
from published import framed, save  # noqa: E402

from bigmodel_cli.commands.arguments.recipe_layers import expand_hub_model  # noqa: E402
from bigmodel_cli.commands.training.finetune_layers import start_layers  # noqa: E402
from bigmodel_cli.core.errors import InputError  # noqa: E402
from bigmodel_cli.core.resolve import Layer, resolve  # noqa: E402
from bigmodel_cli.engine.build.data import load_data, train_and_val  # noqa: E402
from bigmodel_cli.engine.checkpoint import checkpoint  # noqa: E402
from bigmodel_cli.engine.training.assemble import assemble, execute  # noqa: E402

TEXTS = [f"{'fine good' if i % 2 else 'dull bad'} film {i % 7}" for i in range(24)]
DATA: dict[str, tuple[str, list[dict[str, str]]]] = {
    "classes": ("labelled_file", [{"text": text, "label": "ny"[i % 2]} for i, text in enumerate(TEXTS)]),
    "answers": ("chat_file", [{"prompt": text, "completion": " a question"} for text in TEXTS]),
    "pairs": ("parallel_file", [{"source": text, "target": text[::-1]} for text in TEXTS]),
}
KINDS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "BertModel": ("Bert", {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.2,
    }, "classes", "inner.bert.encoder.layer.1"),
    "GPT2LMHeadModel": (
        "GPT2", {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4}, "answers", "inner.transformer.ln_f",
    ),
    "T5ForConditionalGeneration": ("T5", {
        "vocab_size": 300, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8, "eos_token_id": 2,
        "decoder_start_token_id": 0,
    }, "pairs", "inner.decoder.final_layer_norm"),
    "gpt": ("", {"name": "gpt", "layers": 1, "heads": 2, "width": 16}, "answers", "norm"),
}  # fmt: skip
"""By class: the family of its configuration, its sizes, its data, and a layer for `freeze-until`."""
SHORT = {
    "train": {"max_steps": 10, "batch_size": 12, "eval_batch_size": 12},
    "optimizer": {"lr": 3e-3}, "placement": {"precision": "fp32"},
}  # fmt: skip
PAIRS = share_of_pairs(list(KINDS), METHODS, ())


def published(kind: str, folder: Path) -> tuple[list[Layer], Path | None]:
    """The layers of a recipe for the model of `kind` and its data, written into `folder`; and our own checkpoint."""
    family, sizes, rows, _ = KINDS[kind]
    name, samples = DATA[rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    data = Layer("data", {"data": {"name": name, "path": str(folder / "rows.jsonl"), "context": 32}})
    if family:
        torch.manual_seed(0)
        save(folder / "hub", kind, getattr(transformers, f"{family}Config")(**sizes), framed())
        return expand_hub_model([Layer("MODEL", {"model": {"name": f"hf:{folder / 'hub'}"}}), data], True), None
    model = Layer("MODEL", {"model": sizes})
    run = assemble(resolve([model, data, Layer("t", {**SHORT, "train": {"max_steps": 1}})]).recipe, measure=False)
    assert execute(run)
    checkpoint.save(folder / "base.pt", run.state())
    return [data], folder / "base.pt"


@pytest.mark.parametrize(("kind", "method"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_every_method_starts_from_what_is_known_learns_ships_and_goes_on(
    kind: str, method: str, tmp_path: Path
) -> None:
    given, base = published(kind, tmp_path)
    options = {"layer": KINDS[kind][3]} if method == "freeze-until" else {}
    layers = start_layers(base, base is None, {"method": method, **options}, [*given, Layer("t", SHORT)]).layers
    try:
        run = assemble(resolve(layers).recipe, measure=False)
    except InputError as error:
        assert method in error.line or "head" in error.line, error.line
        return
    data = run.recipe.data
    like = task_of(run).spec
    train, _ = train_and_val(load_data(data, like, run.recipe.task), data)  # in the tokens of the weights
    at_start = math.log(2) if kind == "BertModel" else None
    learns_ships_and_goes_on(run, train, SHORT, tmp_path, at_start)
