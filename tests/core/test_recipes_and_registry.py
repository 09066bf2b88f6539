"""Recipes: layers, types, origins, strict YAML. Registries: what the source says is what imports."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.core import registry as registries
from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.core.registry import Registry
from bigmodel_cli.core.resolve import Layer, document_layer, resolve, set_layer
from bigmodel_cli.core.strict_yaml import dump_yaml, parse_scalar, parse_yaml

ALL = [
    "augments",
    "commands",
    "data",
    "exports",
    "losses",
    "loggers",
    "methods",
    "metrics",
    "models",
    "optimizers",
    "readers",
    "schedules",
    "tasks",
]


@pytest.mark.parametrize("name", ALL)
def test_names_in_the_source_are_the_names_that_import(name: str) -> None:
    registry: Registry = getattr(registries, name)
    assert registry.names()
    for key in registry.names():
        entry = registry.get(key)
        assert entry.name == key and registry.found[key].summary, f"{key} has no first docstring line"
        assert entry.schema is not None
    families = {f"{name}:*" for name in registry.families()}
    assert set(registry.names()) <= set(registry._entries) <= set(registry.names()) | families


def test_a_name_cannot_be_taken_twice() -> None:
    fresh = Registry("thing", "things", "bigmodel_cli.models")
    first = fresh.register("one")(lambda: None)

    def other() -> None: ...

    with pytest.raises(ValueError):
        fresh.register("one")(other)
    for name in ("../up", "Up", "", "-up", "a" * 65, "up:", "up\n"):
        with pytest.raises(ValueError):
            fresh.register(name or " ")(other)
    assert list(fresh._entries) == ["one"] and fresh.get("one").function is first


def test_layers_and_their_origins() -> None:
    file = parse_yaml(
        "model:\n  name: mlp\n  hidden: [32, 16]\noptimizer: {name: sgd, lr: 1e-2, momentum: 0.9}\n", "r.yaml"
    )
    layers = [document_layer(file, "r.yaml"), Layer("--lr", {"optimizer": {"lr": 0.5}}), set_layer(["train.epochs=7"])]
    found = resolve(layers)
    assert found.recipe.optimizer.options == {"lr": 0.5, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    assert found.recipe.model.options["hidden"] == (32, 16) and found.recipe.train.epochs == 7
    assert found.origin["optimizer", "lr"] == "--lr" and found.origin["model", "hidden"] == "r.yaml:3"
    # Another component drops the old one's options; the flags of the engine stay.
    other = resolve([*layers, Layer("MODEL", {"model": {"name": "resnet18"}})])
    assert "hidden" not in other.recipe.model.options
    # What is saved is what runs: resolving it again changes nothing, and types are kept.
    saved = parse_yaml(dump_yaml(found.recipe.to_dict())).values
    assert resolve([Layer("saved", saved)]).recipe == found.recipe


def test_a_flag_without_a_recipe_finds_its_component() -> None:
    assert resolve([Layer("m", {"model": {"name": "mlp"}}), set_layer(["optimizer.lr=1e-3"])]).recipe.optimizer.options[
        "lr"
    ] == pytest.approx(1e-3)


SCALARS: list[tuple[str, Any]] = [
    ("1e-3", 1e-3), ("1E5", 1e5), (".5", 0.5), ("-2", -2), ("010", "010"), ("1:30", "1:30"), ("yes", "yes"), ("off", "off"),  # noqa: E501
    ("true", True), ("null", None), ("", None), ("[64, 32]", [64, 32]), ("2020-01-01", "2020-01-01"), ("0x10", "0x10"),
    (".inf", float("inf")), ("a b", "a b"), ("1_000", "1_000"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars(text: str, value: Any) -> None:
    got = parse_scalar(text)
    assert got == value and type(got) is type(value)


VALUES = [
    "1e-3",
    "010",
    "yes",
    "null",
    "",
    "~",
    "1:30",
    "a: b",
    "- x",
    "é\n\x07",
    1e-05,
    0.1,
    3,
    -0.0,
    None,
    True,
    [1, "2"],
    1e300,
]


def test_dump_reads_back_as_the_same_types() -> None:
    values = {"s": {f"k{i}": v for i, v in enumerate(VALUES)}}
    back = parse_yaml(dump_yaml(values)).values
    assert back == values
    assert [type(v) for v in back["s"].values()] == [type(v) for v in values["s"].values()]


HOSTILE = [
    "a: &x [1]\nb: *x", "a: !!python/object:os.system x", "a: 1\na: 2", "[1, 2]", "a: {b: {c: 1, c: 2}}", "? [1]\n: 2",
    "a: " + "[" * 40 + "]" * 40, "a: " + "x" * 300_000, "a: 'unclosed", "\ta: 1", "a: " + "9" * 5000, "1: 2", "a: \x00",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_yaml_is_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "r.yaml")
    assert "r.yaml" in caught.value.line and len(caught.value.line) <= 200


def test_mutated_recipes_never_trace(data_recipe: str) -> None:
    """Half of RELIABILITY's 5,000 mutations would take a minute: CI does a share, `make soak` all."""
    import os

    rng = random.Random(7)
    alphabet = "&*!{}[]:,-#|>'\"\n\t %@`0eE.~\x00\ud800é" + data_recipe
    for _ in range(5000 if os.environ.get("BIGMODEL_SOAK") else 400):
        text = list(data_recipe)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(text))
            text[at : at + rng.randint(0, 3)] = rng.choices(alphabet, k=rng.randint(0, 3))
        try:
            resolve([document_layer(parse_yaml("".join(text), "r.yaml"), "r.yaml")])
        except BigmodelError as error:
            assert error.exit_code == 2 and len(error.line) <= 200


@pytest.fixture
def data_recipe() -> str:
    return (Path(__file__).parents[2] / "recipes/image/mnist-cnn.yaml").read_text()


def test_the_schema_knows_every_component() -> None:
    from bigmodel_cli.core.recipe import COMPONENTS, schema

    properties = schema()["properties"]
    for section, registry in COMPONENTS.items():
        assert [c["title"] for c in properties[section]["oneOf"]] == registry.names()


def test_no_option_of_a_component_is_hidden_by_a_field_of_its_section() -> None:
    from bigmodel_cli.core.recipe import COMPONENTS, section_type

    for section, registry in COMPONENTS.items():
        typed = set(section_type(section).model_fields)
        hidden = {name: typed & set(registry.get(name).schema.model_fields) for name in registry.names()}
        assert not {name: fields for name, fields in hidden.items() if fields}, section


def test_a_former_name_in_a_recipe_means_the_component() -> None:
    sizes = {"data": {"name": "synthetic_images", "size": 32}}
    found = resolve([Layer("m", {"model": {"name": "mlp"}}), Layer("r.yaml", sizes), set_layer(["data.classes=4"])])
    assert found.recipe.data.name == "synthetic_images"
    assert (found.recipe.data.options["size"], found.recipe.data.options["classes"]) == (32, 4)
    # The new name over the old one is the same data set: its options stay.
    again = resolve(
        [Layer("m", {"model": {"name": "mlp"}}), Layer("r.yaml", sizes), set_layer(["data.name=synthetic_images"])]
    )
    assert again.recipe.data.options["size"] == 32
    assert registries.data.get("synthetic_pictures").name == "synthetic_images"
    assert "synthetic_pictures" not in registries.data.names()


def test_a_former_name_cannot_be_taken() -> None:
    fresh = Registry("thing", "things", "bigmodel_cli.models")
    fresh.register("one", formerly=("uno",))(lambda: None)
    with pytest.raises(ValueError, match="'uno' is already registered by"):
        fresh.register("uno")(test_a_former_name_in_a_recipe_means_the_component)
