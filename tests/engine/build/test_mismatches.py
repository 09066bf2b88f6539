"""A checkpoint, a recipe and data that do not belong together: exit 2, one line with both values."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.engine.build.load import load_trained
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.training.assemble import assemble

MLP = Layer("test", {"model": {"name": "mlp", "hidden": [4]}, "train": {"epochs": 1}})
State = dict[str, Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "x.pt"
    checkpoint.save(path, assemble(resolve([MLP]).recipe).state())
    return path


def with_(path: tuple[str, ...], value: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


CLASSES = [str(k) for k in range(10)]
TURNED = ["1", "0", *CLASSES[2:]]
FEWER = CLASSES[:9]
DATA = ("meta", "data", "spec")

# What the checkpoint says, against the data on the disk (digits: ten classes, 1x8x8).
AGAINST_DATA: list[tuple[Callable[[State], None], list[str]]] = [
    (with_((*DATA, "classes"), TURNED), ["classes[0]: '1' in the checkpoint, '0' in the data"]),
    (with_((*DATA, "classes"), FEWER), ["classes (such as '9'): 9 in the checkpoint, 10 in the data"]),
    (with_((*DATA, "classes"), ["zero", *CLASSES[1:]]), ["classes[0]: 'zero' in the checkpoint, '0' in the data"]),
    (with_((*DATA, "height"), 28), ["height: 28 in the checkpoint, 8 in the data"]),
    (with_((*DATA, "channels"), 3), ["channels: 3 in the checkpoint, 1 in the data"]),
    (with_((*DATA, "mean"), [0.5]), ["mean (such as 0.5): 1 in the checkpoint, 0 in the data"]),
    (with_(("meta", "data", "fingerprint"), "f" * 64), ["fingerprint ffffffffffff in the checkpoint; 0b7e9c3202d7"]),
    (with_(("progress", "lost"), 1), ["the checkpoint's state does not fit this run"]),
    (with_(("rng", "cpu"), torch.ones(3)), ["the checkpoint's state does not fit this run"]),
    (with_(("optimizer",), {"state": 3}), ["the checkpoint's state does not fit this run"]),
]  # fmt: skip

# What one part of the checkpoint says, against another.
WITHIN: list[tuple[Callable[[State], None], list[str]]] = [
    (with_(("meta", "arch"), "cnn"), ["architecture 'cnn' in meta; 'mlp' in its recipe"]),
    (with_(("meta", "arch_args", "hidden"), [5]), ["hidden [5] in meta; [4] in its recipe"]),
    (with_(("meta", "classes"), TURNED), ["classes[0]: '1' in the meta, '0' in the input"]),
    (with_(("meta", "input", "height"), 9), ["linear1.weight is (4, 64); the model's is (4, 72)"]),
    (with_(("meta", "input", "channels"), 10**9), ["1 values of mean; expected 1000"]),
    (with_(("meta", "input", "std"), [0.0]), ["std is [0.0]; expected finite values, std above 0"]),
    (with_(("meta", "input", "mean"), [float("nan")]), ["mean is [nan]; expected finite"]),
    (with_(("meta", "input", "width"), "wide"), ["input.width = 'wide'"]),
    (with_(("meta", "input", "depth"), 3), ["unknown input.depth; expected channels, height"]),
    (with_(("meta", "input", "kind"), "smell"), ["input of kind 'smell'; expected image"]),
    (with_(("meta", "input"), {}), ["input of kind None; expected image"]),
    (with_(("meta", "recipe", "model", "hidden"), [10**12]), ["hidden [4] in meta; [1000000000000] in its recipe"]),
    (with_(("meta", "recipe", "model", "name"), "../../evil"), ["unknown model '../../evil'"]),
    (with_(("meta", "recipe", "data", "nonsense"), 1), ["unknown key data.nonsense"]),
    (with_(("meta", "recipe", "train"), "long"), ["train is 'long'; expected keys below train:"]),
    (with_(("model", "head.weight"), torch.zeros(9, 4)), ["head.weight is (9, 4); the model's is (10, 4)"]),
    (with_(("model", "extra"), torch.zeros(1)), ["0 tensors missing, 1 unexpected, e.g. extra"]),
    (with_(("model", "head.bias"), "text"), ["model holds 'head.bias' of type str; expected tensors"]),
    (with_(("model",), {}), ["4 tensors missing, 0 unexpected"]),
]


def changed(saved: Path, change: Callable[[State], None], to: Path) -> Path:
    state = copy.deepcopy(checkpoint.load(saved))
    change(state)
    checkpoint.save(to, state)
    return to


def held_to(expected: list[str], error: InputError) -> None:
    assert error.exit_code == 2 and len(error.line) <= 200
    for part in expected:
        assert part in error.line, error.line


@pytest.mark.parametrize(("change", "expected"), AGAINST_DATA, ids=lambda v: v[0] if isinstance(v, list) else "")
def test_resume_is_held_to_its_data(change: Any, expected: list[str], saved: Path, tmp_path: Path) -> None:
    path = changed(saved, change, tmp_path / "x.pt")
    with pytest.raises(InputError) as caught:
        assemble(resolve([MLP]).recipe, checkpoint.load(path))
    held_to(["--resume: ", *expected], caught.value)


@pytest.mark.parametrize(("change", "expected"), WITHIN, ids=lambda v: v[0] if isinstance(v, list) else "")
def test_a_checkpoint_agrees_with_itself(change: Any, expected: list[str], saved: Path, tmp_path: Path) -> None:
    path = changed(saved, change, tmp_path / "x.pt")
    with pytest.raises(InputError) as caught:
        load_trained(path)
    held_to(expected, caught.value)
    with pytest.raises(InputError):  # and no resume goes past it
        assemble(resolve([MLP]).recipe, checkpoint.load(path))


def test_a_width_of_a_trillion_takes_no_memory(saved: Path, tmp_path: Path) -> None:
    import resource

    def change(state: State) -> None:
        state["meta"]["recipe"]["model"]["hidden"] = state["meta"]["arch_args"]["hidden"] = [10**9, 10**9]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="tensors missing"):
        load_trained(changed(saved, change, tmp_path / "x.pt"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


TEXT = TextSpec("char", ("a", "b"), 8)


@pytest.mark.parametrize(
    ("name", "options", "spec"),
    [
        ("mlp", {"hidden": [1] * 200_000}, None),
        ("vit", {"depth": 10**9}, None),
        ("gpt", {"layers": 10**9}, TEXT),
        ("text_encoder", {"layers": 10**9}, TEXT.with_(classes=("a", "b"))),
    ],
)
def test_more_layers_than_tensors_are_not_built(
    name: str, options: State, spec: TextSpec | None, saved: Path, tmp_path: Path
) -> None:
    def change(state: State) -> None:
        state["meta"] |= {"arch": name, "arch_args": options}
        state["meta"]["recipe"]["model"] = {"name": name, **options}
        if spec is not None:
            state["meta"] |= {"input": {"kind": spec.kind, **spec.to_dict()}, "classes": list(spec.classes)}

    begun = time.process_time()
    with pytest.raises(InputError, match="more layers than it has tensors"):
        load_trained(changed(saved, change, tmp_path / "x.pt"))
    assert time.process_time() - begun < 10


def test_what_agrees_loads(saved: Path, tmp_path: Path) -> None:
    """Negative control: the same road with nothing changed."""
    path = changed(saved, lambda state: None, tmp_path / "x.pt")
    assert load_trained(path).recipe.model.name == "mlp"
    assert assemble(resolve([MLP]).recipe, checkpoint.load(path)).progress.step == 0


def test_a_checkpoint_from_before_an_option_loads(saved: Path, tmp_path: Path) -> None:
    def change(state: State) -> None:
        for options in (state["meta"]["recipe"]["model"], state["meta"]["arch_args"]):
            del options["dropout"]

    path = changed(saved, change, tmp_path / "x.pt")
    assert load_trained(path).recipe.model.options["dropout"] == 0
    assert assemble(resolve([MLP]).recipe, checkpoint.load(path)).progress.step == 0


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ({"model": {"name": "perceptron"}}, ["model.name is 'perceptron'", "'mlp'"]),
        ({"model": {"hidden": [5]}}, ["model.hidden is [5]", "[4]"]),
        ({"optimizer": {"name": "adamw", "lr": 0.5}}, ["optimizer.lr is 0.5"]),
        ({"train": {"seed": 7}}, ["train.seed is 7", "0"]),
        ({"data": {"val_fraction": 0.5}}, ["data.val_fraction is 0.5", "0.1"]),
    ],
)
def test_resume_is_held_to_its_recipe(layer: Any, expected: list[str], saved: Path) -> None:
    with pytest.raises(InputError) as caught:
        assemble(resolve([MLP, Layer("flags", layer)]).recipe, checkpoint.load(saved))
    held_to(expected, caught.value)
