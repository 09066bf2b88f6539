"""Every export format on real networks: what is written, read back by the format's own library."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.registry import exports
from bigmodel_cli.export import onnx as onnx_format
from bigmodel_cli.export.proof import Proof, export_and_prove

FORMATS = exports.names()
CARRY: dict[str, Any] = {
    "arch": "tiny",
    "arch_args": {"width": 8},
    "classes": ["null", "één", "<two>", "3", "4"],
    "preprocess": {"mode": "RGB", "mean": [0.5, 0.25, 0.125], "std": [0.1, 0.2, 0.3], "layout": "NCHW float32"},
}


def tiny() -> nn.Module:
    """Two convolutions with BatchNorm and dropout: in train mode its answers would differ."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def trained(build: Callable[[], nn.Module]) -> nn.Module:
    """A model whose BatchNorm statistics are not the initial ones, left in train mode."""
    torch.manual_seed(1)
    model = build().train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 32, 32) * 2 + 1)
    return model


def prove(name: str, path: Path, build: Callable[[], nn.Module] = tiny, sizes: tuple[int, ...] = (7, 4)) -> Proof:
    torch.manual_seed(2)
    batches = [torch.randn(n, 3, 32, 32) for n in sizes]
    return export_and_prove(name, trained(build), batches, path, CARRY, build)


def suffix(name: str) -> str:
    return exports.get(name).meta["suffix"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("build", [tiny, lambda: resnet18(num_classes=5)], ids=["tiny", "resnet18"])
def test_a_real_network_passes(name: str, build: Callable[[], nn.Module], tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix(name)}"
    proof = prove(name, path, build)
    assert proof.passed and proof.inputs == 11 and proof.equal_answers == 1
    assert 0 <= proof.mean_difference <= proof.largest_difference <= 1e-4
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, path.name + ".json"]
    assert path.stat().st_size == proof.bytes


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_any_batch_size_runs_from_the_file(name: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix(name)}"
    assert prove(name, path, sizes=(2,)).passed
    x = torch.randn(size, 3, 32, 32)
    with torch.inference_mode():
        logits = exports.get(name).meta["run"](path, tiny)(x)
        torch.testing.assert_close(torch.as_tensor(logits), trained(tiny).eval()(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("layout", ["channels_last", "bfloat16", "one_input"])
def test_what_a_checkpoint_may_bring_along(name: str, layout: str, tmp_path: Path) -> None:
    model, x = trained(tiny), torch.randn(6, 3, 32, 32)
    if layout == "channels_last":
        model = model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    elif layout == "bfloat16":
        model = model.bfloat16()
    else:
        x = x[:1]
    assert export_and_prove(name, model, [x], tmp_path / f"model{suffix(name)}", CARRY, tiny).passed


def test_onnx_carries_classes_and_preprocessing_in_one_valid_file(tmp_path: Path) -> None:
    library = pytest.importorskip("onnx")
    prove("onnx", tmp_path / "model.onnx")
    model = library.load(str(tmp_path / "model.onnx"), load_external_data=False)
    library.checker.check_model(model, full_check=True)
    props = {p.key: p.value for p in model.metadata_props}
    assert props["arch"] == "tiny" and json.loads(props["classes"]) == CARRY["classes"]
    assert json.loads(props["preprocess"]) == CARRY["preprocess"]
    assert not [t for t in model.graph.initializer if t.data_location == library.TensorProto.EXTERNAL]
    (given,), (answer,) = model.graph.input, model.graph.output
    assert (given.name, answer.name) == ("input", "logits")
    assert given.type.tensor_type.shape.dim[0].dim_param and given.type.tensor_type.shape.dim[1].dim_value == 3
    assert [o.version for o in model.opset_import if o.domain == ""] == [18]


def test_pt2_carries_them_and_needs_torch_alone(tmp_path: Path) -> None:
    prove("pt2", tmp_path / "model.pt2")
    program = """
import json, sys, torch
extra = {"bigmodel.json": ""}
model = torch.export.load(sys.argv[1], extra_files=extra).module()
print(json.dumps([tuple(model(torch.zeros(4, 3, 32, 32)).shape), json.loads(extra["bigmodel.json"])]))
assert not [m for m in sys.modules if m.startswith("bigmodel")]
"""
    command = [sys.executable, "-c", program, "model.pt2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[4, 5], CARRY]


def test_safetensors_carries_them_and_holds_the_very_weights(tmp_path: Path) -> None:
    from safetensors import safe_open

    prove("safetensors", tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    assert metadata["format"] == "pt" and metadata["arch"] == "tiny"
    assert json.loads(metadata["classes"]) == CARRY["classes"]
    expected = trained(tiny).state_dict()
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[k], v) for k, v in expected.items())


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_printed(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prove(name, tmp_path / f"model{suffix(name)}")
    assert capfd.readouterr() == ("", "")


class Branching(nn.Module):
    """Which way it goes depends on the values of its input: no tracer can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_a_model_that_cannot_be_traced_is_one_line(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=f"cannot be written as {name}: .*data-dependent") as caught:
        export_and_prove(name, Branching(), [torch.randn(4, 3)], tmp_path / f"m{suffix(name)}", CARRY, Branching)
    assert "\n" not in caught.value.line and list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what Python does for a module that is not there
    with pytest.raises(MachineError, match=f"needs {package}") as caught:
        prove("onnx", tmp_path / "model.onnx")
    assert caught.value.hint == "pip install 'bigmodel[onnx]'" and list(tmp_path.iterdir()) == []


def test_needed_gives_the_modules() -> None:
    assert [m.__name__ for m in onnx_format.needed("json", "logging")] == ["json", "logging"]
