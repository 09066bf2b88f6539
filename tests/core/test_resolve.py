"""Layers to a recipe: who wins, what each value's origin is, and where an error says that it stands."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import COMPONENTS, Recipe, cache_root, data_root, schema
from bigmodel_cli.core.resolve import Layer, document_layer, resolve, set_layer
from bigmodel_cli.core.strict_yaml import parse_yaml

MODEL = Layer("MODEL", {"model": {"name": "mlp"}})


def refused(*layers: Layer) -> Any:
    with pytest.raises(InputError) as caught:
        resolve(layers)
    assert caught.value.exit_code == 2 and len(caught.value.line) <= 200
    return caught.value


def file(text: str) -> Layer:
    return document_layer(parse_yaml(text, "r.yaml"), "r.yaml")


def test_of_two_layers_the_later_wins_and_the_origin_is_its_own() -> None:
    found = resolve(
        [MODEL, file("train:\n  epochs: 3\n  seed: 5\n"), set_layer(["train.epochs=4", " train.patience = 2"])]
    )
    assert (found.recipe.train.epochs, found.recipe.train.seed, found.recipe.train.patience) == (4, 5, 2)
    assert found.origin == {
        ("model", "name"): "MODEL", ("train", "epochs"): "--set", ("train", "seed"): "r.yaml:3",
        ("train", "patience"): "--set",
    }  # fmt: skip


def test_a_search_is_no_part_of_the_recipe() -> None:
    assert resolve([MODEL, file("search:\n  optimizer.lr: [1, 2]\n")]).recipe == resolve([MODEL]).recipe


@pytest.mark.parametrize("text", ["train.epochs", "=3", "train=3", ".epochs=3", "train.=3", "a.b.c=3", ""])
def test_what_is_no_assignment(text: str) -> None:
    with pytest.raises(InputError) as caught:
        set_layer([text])
    assert caught.value.exit_code == 2 and text in caught.value.what


def test_another_component_drops_the_options_of_the_old_one_and_their_origins() -> None:
    old = Layer("old", {
        "model": {"name": "resnet8", "init": "kaiming", "pruned": {"conv1": [None, 8]}},
        "optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.9},
    })  # fmt: skip
    same = resolve([old, Layer("again", {"model": {"name": "resnet8"}, "optimizer": {"name": "sgd"}})])
    assert same.recipe.model.pruned == {"conv1": (None, 8)} and same.recipe.optimizer.options["momentum"] == 0.9
    new = resolve([old, Layer("new", {"model": {"name": "mlp"}, "optimizer": {"name": "adamw"}})])
    # What speaks of the network that was named goes with it; how it is initialised does not.
    assert new.recipe.model.pruned is None and new.recipe.model.init == "kaiming"
    assert new.recipe.optimizer.options["lr"] != 0.5 and "momentum" not in new.recipe.optimizer.options
    assert new.origin == {("model", "name"): "new", ("model", "init"): "old", ("optimizer", "name"): "new"}


def test_no_model_is_an_error_before_anything_else() -> None:
    for values in ({"train": {"epochs": 0}}, {"model": {"init": "kaiming"}}):
        assert refused(Layer("x", values)).hint == "bigmodel models"  # where their names are


BAD = {  # what is wrong -> the place, the key, and a word of what would be right
    "trian:\n  epochs: 3\n": ("r.yaml:1", "'trian'", "train"),
    "train: 3\n": ("r.yaml:1", "train is 3", "train:"),
    "train:\n  seed: 1\n  epochz: 3\n": ("r.yaml:3", "train.epochz", "epochs"),
    "train:\n  epochs: many\n": ("r.yaml:2", "train.epochs = 'many'", "integer"),
    "train:\n  epochs: 0\n": ("r.yaml:2", "train.epochs = 0", "greater than 0"),
    "optimizer:\n  name: sgd\n  momentun: 1\n": ("r.yaml:3", "optimizer.momentun", "momentum"),
    "optimizer:\n  name: sgd\n  lr: fast\n": ("r.yaml:3", "optimizer.lr = 'fast'", "number"),
    "optimizer:\n  name: sgdd\n": ("r.yaml:2", "'sgdd'", "sgd"),
    "placement:\n  precision: fp8\n": ("r.yaml:2", "placement.precision = 'fp8'", "bf16"),
    "model:\n  hidden: [1, 2, x]\n": ("r.yaml:2", "model.hidden", "integer"),
    "start:\n  method: l2-sp\n  checkpoint: x\n  rank: 2\n": ("r.yaml:4", "start.rank", ""),
}


@pytest.mark.parametrize("text", BAD)
def test_an_error_says_where_what_and_what_was_expected(text: str) -> None:
    where, what, expected = BAD[text]
    error = refused(MODEL, file(text))
    assert error.what.startswith(f"{where}: ") and what in error.what and expected in error.expected
    assert "more" not in error.expected


def test_of_several_errors_the_first_is_told_and_the_rest_counted() -> None:
    error = refused(MODEL, file("train:\n  epochs: 0\n  batch_size: 0\n  seed: -1\n"))
    assert "train.epochs" in error.what and error.expected.endswith("(and 2 more)")
    assert error.expected.startswith("expected")


def test_what_a_component_cannot_do_without_is_missing() -> None:
    error = refused(MODEL, Layer("flags", {"data": {"name": "image_folder"}}))
    assert "data.path" in error.what and "recipe: " in error.what  # nobody gave it: it stands nowhere


def test_an_unknown_component_of_a_flag_is_said_without_a_place() -> None:
    assert refused(Layer("MODEL", {"model": {"name": "mpl"}})).what.startswith("unknown model 'mpl'")


def test_what_is_resolved_is_typed_and_whole() -> None:
    recipe = resolve([MODEL]).recipe
    for section, registry in COMPONENTS.items():
        component = getattr(recipe, section)
        assert component.options.keys() == registry.get(component.registered_name).schema.model_fields.keys()
    assert resolve([Layer("x", recipe.to_dict())]).recipe == recipe
    for text, trained in (("{}", False), ("{pretrained: true}", True), ("{checkpoint: x.pt}", True)):
        assert resolve([MODEL, file(f"start: {text}\n")]).recipe.start.trained is trained


@pytest.mark.parametrize(
    ("section", "key", "good", "bad"),
    [
        ("data", "val_fraction", [0.01, 0.99], [0, 1, -0.1]),
        ("data", "split_seed", [0, 2**32 - 1], [-1, 2**32]),
        ("train", "seed", [0, 2**32 - 1], [-1, 2**32]),
        ("train", "clip_norm", [None, 1e-9], [0, -1]),
        ("train", "skip_nonfinite", [0, 3], [-1]),
        ("train", "ema_decay", [None, 0.5], [0, 1]),
        ("train", "accumulate", [1, 9], [0, 1.5]),
        ("train", "max_steps", [None, 1], [0]),
        ("train", "shard_above", [0], [-1]),
        ("start", "sha256", [None, "a" * 64, "F" * 64], ["a" * 63, "a" * 65, "g" * 64]),
        ("placement", "device", ["auto", "cpu", "cuda", "cuda:11", "mps"], ["tpu", "cuda:", "xcpu", "mpss"]),
        ("placement", "threads", [None, 1], [0]),
        ("placement", "compile", [True, False, "auto"], ["never"]),
        ("parallel", "tensor", [1, 8], [0]),
        ("parallel", "timeout", [0.5], [0]),
        ("parallel", "strategy", ["auto", "ddp", "fsdp", "tp"], ["dp"]),
    ],
)
def test_the_ends_of_every_range(section: str, key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        recipe = resolve([MODEL, Layer("x", {section: {key: value}})]).recipe
        assert getattr(getattr(recipe, section), key) == value
    for value in bad:
        assert f"{section}.{key}" in refused(MODEL, Layer("x", {section: {key: value}})).what


def test_a_recipe_cannot_be_changed_and_has_no_field_of_its_own() -> None:
    recipe = resolve([MODEL]).recipe
    for section in Recipe.model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(recipe, section, None)
    with pytest.raises(ValueError, match="frozen"):
        recipe.model.name = "cnn"


def test_where_files_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    for variable, root in (("BIGMODEL_DATA", lambda: data_root(None)), ("BIGMODEL_CACHE", cache_root)):
        monkeypatch.delenv(variable, raising=False)
        assert str(root()) == "/home/x/.cache/bigmodel"
        monkeypatch.setenv(variable, "")
        assert str(root()) == "/home/x/.cache/bigmodel"
        monkeypatch.setenv(variable, "~/there")
        assert str(root()) == "/home/x/there"
    assert str(data_root("~/mine")) == "/home/x/mine"


def test_the_schema_has_each_components_own_options() -> None:
    found = schema()
    for section, registry in COMPONENTS.items():
        for choice in found["properties"][section]["oneOf"]:
            entry = registry.get(choice["title"])
            key = "method" if section == "start" else "name"
            assert choice["properties"][key] == {"const": entry.name} and choice["additionalProperties"] is False
            own = entry.schema.model_fields
            assert set(own) <= set(choice["properties"]) and choice["description"] == registry.found[entry.name].summary
            assert choice["required"] == [key, *(name for name, field in own.items() if field.is_required())]
            assert choice["type"] == "object"
    refers = re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(found))
    assert refers and set(refers) <= set(found["$defs"])
    assert found["title"] == "bigmodel recipe" and found["required"] == [] and found["additionalProperties"] is False
