"""Every fine-tuning method on published text models: an encoder, a language model, a translation model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from figures import share_of_pairs

transformers = pytest.importorskip("transformers")
from published import causal, framed, save  # noqa: E402

from bigmodel_cli.commands.arguments.recipe_layers import expand_hub_model  # noqa: E402
from bigmodel_cli.commands.training.finetune_layers import start_layers  # noqa: E402
from bigmodel_cli.core.errors import InputError  # noqa: E402
from bigmodel_cli.core.recipe import Recipe  # noqa: E402
from bigmodel_cli.core.registry import methods, tasks  # noqa: E402
from bigmodel_cli.core.resolve import Layer, resolve  # noqa: E402
from bigmodel_cli.engine.build.load import load_trained  # noqa: E402
from bigmodel_cli.engine.build.text_defaults import suitable_token_length  # noqa: E402
from bigmodel_cli.engine.checkpoint import checkpoint  # noqa: E402
from bigmodel_cli.engine.training.assemble import assemble, execute  # noqa: E402
from bigmodel_cli.engine.training.cached_features import OnFeatures  # noqa: E402
from bigmodel_cli.engine.training.evaluate import evaluate  # noqa: E402
from bigmodel_cli.engine.training.run import Hooks  # noqa: E402
from bigmodel_cli.export.proof import prove  # noqa: E402
from bigmodel_cli.export.subject import Subject  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
T5 = {
    "vocab_size": 300, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8, "eos_token_id": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip
MODELS = {"bert": "labelled_file", "gpt2": "text_files", "t5": "parallel_file"}
DATA = {"bert": "a.csv", "gpt2": "a.txt", "t5": "a.tsv"}
UNTIL = {"bert": "inner.bert.encoder.layer.1", "gpt2": "inner.transformer.h.1", "t5": "inner.decoder.block.1"}
METHODS = [name for name in methods.names() if name not in ("distill", "dpo", "qat")]
CLASSIFIES = ("probe",)
NOTHING_LEFT = {("gpt2", "freeze-backbone"), ("t5", "freeze-backbone"), ("t5", "bitfit")}
"""Their heads are their embeddings, and T5 has no biases."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    encoder = save(root / "whole", "BertModel", transformers.BertConfig(**SIZES), framed())
    bare = transformers.BertModel(encoder.config, add_pooling_layer=False)
    bare.load_state_dict(encoder.state_dict(), strict=False)
    bare.save_pretrained(root / "bert")
    framed().save_pretrained(root / "bert")
    causal(root / "gpt2", "GPT2")
    save(root / "t5", "T5ForConditionalGeneration", transformers.T5Config(**T5), framed())
    rows = [f"a {'fine' if i % 2 else 'dull'} film {i}" for i in range(24)]
    labelled = [f"{row},good" if i % 2 else f"who are you? we answer {i} {i},bad" for i, row in enumerate(rows)]
    (root / "a.csv").write_text("text,label\n" + "\n".join(labelled) + "\n")
    (root / "a.txt").write_text("".join(f"{row} who are you\n" for row in rows))
    (root / "a.tsv").write_text("source\ttarget\n" + "".join(f"{row}\tein film {row[2:6]}\n" for row in rows))
    return root


def recipe_for(
    model: str, method: str, folder: Path, start: Path | None = None, lr: float | None = None, **train: Any
) -> Recipe:
    options = {"layer": UNTIL[model]} if method == "freeze-until" else {}
    data = {"name": MODELS[model], "path": str(folder / DATA[model])} | ({"context": 16} if model != "bert" else {})
    section = {"data": data, "train": {"batch_size": 8, **train}, "placement": {"precision": "fp32"}}
    section |= {"optimizer": {"lr": lr}} if lr else {}
    named = [] if start else [Layer("MODEL", {"model": {"name": f"hf:{folder / model}"}})]
    given = expand_hub_model([*named, Layer("t", section)], weights=True)
    return resolve(start_layers(start, start is None, {"method": method, **options}, given).layers).recipe


def changed(recipe: Recipe, old: str, new: str) -> Recipe:
    """`recipe` with `old` replaced in its JSON."""
    text = json.dumps(recipe.to_dict())
    assert old in text
    return resolve([Layer("t", json.loads(text.replace(old, new)))]).recipe


def loss(run: Any, model: Any = None, task: Any = None) -> float:
    """On the train split."""
    cached = isinstance(run.task, OnFeatures)
    source = run.batches.source.source if cached else run.batches.source
    found = evaluate(model or run.model, task or (run.task.task if cached else run.task), source, run.placement, 8)
    assert found is not None
    return found["loss"]


@pytest.mark.parametrize(("model", "method"), share_of_pairs(list(MODELS), METHODS, ("full",)))
def test_every_method_starts_where_it_should_learns_ships_and_goes_on(
    model: str, method: str, folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(model, method, folder, lr=5e-3, max_steps=12)
    if (model, method) in NOTHING_LEFT or (method in CLASSIFIES and model != "bert"):
        with pytest.raises(InputError, match=r"leaves nothing of|expected a classifier") as caught:
            assemble(recipe, measure=False)
        assert "--method full" in str(caught.value.hint) or method in CLASSIFIES
        return
    run = assemble(recipe, measure=False)
    begun = loss(run)
    if model == "bert":
        assert begun == pytest.approx(math.log(2), abs=1e-5), "a new head knows nothing"
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    assert execute(run)
    learned = loss(run)
    assert learned < begun - 1e-4
    frozen = method in ("probe", "freeze-backbone")
    assert (recipe.model.options.get("pooling") == "mean") == (model == "bert" and frozen)
    if model == "bert" and not frozen:  # its pooler is new, so no method keeps it as it is
        pooler = [name for name in before if "bert.pooler.dense.weight" in name or "pooler.dense.param" in name]
        assert any(not torch.equal(before[name], run.model.state_dict()[name]) for name in pooler)
        assert not any("pooler" in name for name in run.frozen.tensors)
    checkpoint.save(tmp_path / "x.pt", run.state())
    loaded = load_trained(tmp_path / "x.pt")
    assert loss(run, loaded.model, loaded.task) == pytest.approx(learned, abs=1e-4)
    more = assemble(recipe_for(model, "full", folder, tmp_path / "x.pt", max_steps=1), measure=False)
    samples = more.val.gather(torch.arange(2))  # those of `run` may be features
    shipped = Subject(loaded.model, loaded.task, [samples], {**loaded.source_metadata(), "data": {}})
    assert prove(shipped, "safetensors", tmp_path / "shipped", seconds=0).passed
    assert loss(more) == pytest.approx(learned, abs=1e-4), "it goes on from where it stood"
    assert execute(more)


def test_a_frozen_decoder_whose_head_sees_every_token_trains_it_in_steps(folder: Path) -> None:
    data = {"name": "labelled_file", "path": str(folder / "a.csv")}
    section = {"data": data, "train": {"batch_size": 8, "max_steps": 12}, "optimizer": {"lr": 5e-2}}
    given = [Layer("MODEL", {"model": {"name": f"hf:{folder / 'gpt2'}"}}), Layer("t", section)]
    start = start_layers(None, True, {"method": "freeze-backbone"}, expand_hub_model(given, weights=True))
    run = assemble(resolve(start.layers).recipe, measure=False)
    assert any("the head takes (256, 48) per sample, not one vector" in note for note in run.notes)
    begun, before = loss(run), {name: value.clone() for name, value in run.model.state_dict().items()}
    assert begun == pytest.approx(math.log(2), abs=1e-5)
    assert execute(run) and loss(run) < begun - 1e-4
    moved = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"inner.score.weight"}


def test_what_is_new_trains_again_in_a_resumed_run_and_probe_says_that_it_is_random(folder: Path) -> None:
    own = '"pooling": "mean"', '"pooling": "own"'
    recipe = changed(recipe_for("bert", "freeze-backbone", folder, max_steps=4), *own)
    assert not recipe.start.options["solve"], "max_steps asks for steps"
    whole = assemble(changed(recipe, '"solve": false', '"solve": true'), measure=False)
    assert any("inner.bert.pooler.dense: new, so it trains" in note for note in whole.notes)
    assert execute(whole)
    broken = assemble(recipe, measure=False, hooks=Hooks(should_stop=lambda run: run.progress.step == 2))
    assert not execute(broken)
    resumed = assemble(recipe, broken.state(), measure=False)
    assert execute(resumed)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    probed = assemble(changed(recipe_for("bert", "probe", folder), *own), measure=False)
    assert any("inner.bert.pooler.dense: new, and random" in note for note in probed.notes)
    solving = changed(changed(recipe, '"solve": false', '"solve": true'), str(folder / "bert"), str(folder / "whole"))
    solved = assemble(solving, measure=False)
    assert solved.adapted.solve is not None and not any("new, so" in note for note in solved.notes)


@pytest.mark.parametrize(
    ("samples", "tokens"), [(1, 128), (20, 128), (160, 128), (1_500, 128), (9_000, 32), (50, 9_000)]
)
def test_the_length_in_tokens_is_a_number_of_steps(samples: int, tokens: int) -> None:
    length = suitable_token_length(samples, tokens)
    assert length.batch_size == 1 or length.batch_size * tokens <= 8192
    assert 3 <= length.epochs <= 20
    assert length.epochs * math.ceil(samples / length.batch_size) >= min(
        200, 20 * math.ceil(samples / length.batch_size)
    )
    assert suitable_token_length(samples, tokens, 7).batch_size == 7


def test_the_defaults_of_a_language_model_are_of_its_own_windows(folder: Path) -> None:
    """They are counted with the tokenizer of the published weights, whose rate is gentler than our own's."""
    recipe = recipe_for("gpt2", "full", folder)
    assert recipe.optimizer.options["lr"] == 5e-5 and recipe.train.epochs == 20 and recipe.train.patience == 7
    assert recipe_for("gpt2", "lora", folder).optimizer.options["lr"] == 5e-4
    assert recipe_for("t5", "full", folder, epochs=2).train.epochs == 2

    rates = {method: recipe_for("t5", method, folder).optimizer.options["lr"] for method in ("full", "l2-sp", "lora")}
    own = tasks.get("translation").meta["lr_of_published"]
    assert rates == {"full": own, "l2-sp": own, "lora": 5e-4} and own > 5e-5, "pairs are short"
