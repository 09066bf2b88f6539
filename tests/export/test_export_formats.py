"""Every export format on real networks: what is written, read back by the format's own library."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from subjects import CLASSES, GREY, IMAGES, TEXTS, images, subject, suffix
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.registry import exports, models, tasks
from bigmodel_cli.export import proof as proving
from bigmodel_cli.export import runtime
from bigmodel_cli.export.folder import read_folder
from bigmodel_cli.export.proof import Proof, prove
from bigmodel_cli.export.shapes import dynamic_shapes
from bigmodel_cli.export.subject import Subject

QUICK = ["onnx", "pt2", "safetensors"]
"""Written in a second; what they share is tried on these."""
FILES = {"labels.json", "preprocess.json", "export.json", "proof.json", "example.py", "MODEL_CARD.md", "SHA256SUMS"}


@pytest.fixture(autouse=True)
def no_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process each; test_export_example.py is about them."""
    monkeypatch.setattr(proving, "run_example", lambda *_: None)


def made(name: str, folder: Path, what: Subject | None = None, **more: Any) -> Proof:
    return prove(what or subject(), name, folder / "out", **{"seconds": 0, **more})


def test_every_format_is_known_here() -> None:
    assert set(QUICK) <= set(exports.names())


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("arch", ["cnn", "resnet8", "vit"])
def test_a_real_network_passes(name: str, arch: str, tmp_path: Path) -> None:
    small = {"depth": 1, "width": 24} if arch == "vit" else {}
    proof = made(name, tmp_path, subject(arch, **small))
    assert proof.passed and proof.inputs == 11 and proof.equal_answers == 1
    assert 0 <= proof.mean_difference <= proof.largest_difference <= 1e-4
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES | {"model" + suffix(name)}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "name", [n for n in exports.names() if n not in (*QUICK, "huggingface") and "kinds" not in exports.found[n].meta]
)
def test_every_other_format_passes_or_says_what_it_needs(name: str, tmp_path: Path) -> None:
    if name == "aoti" and not os.environ.get("BIGMODEL_SOAK"):
        pytest.skip("compiles for half a minute; BIGMODEL_SOAK=1")
    try:
        proof = made(name, tmp_path, subject(sizes=(40, 4)))
    except MachineError as error:
        assert error.hint and list(tmp_path.iterdir()) == []
        pytest.skip(error.what)
    assert proof.passed and proof.largest_difference <= 1e-4 and proof.equal_answers == 1


FAMILIES = {models.found[name].module: name for name in reversed(models.names())}


@pytest.mark.parametrize("arch", FAMILIES.values())
def test_a_model_of_every_family_is_traced_with_any_batch(arch: str) -> None:
    """What a tracer takes for a constant, such as ``len(x)``, would be baked into every format."""
    entry = models.get(arch)
    spec_type = tasks.get(entry.meta["task"]).meta["spec_type"]
    spec = GREY if spec_type.kind == "image" else spec_type.typical()
    task = tasks.get(entry.meta["task"])(spec, nn.CrossEntropyLoss(reduction="none"), None)
    model, example = entry(spec).eval(), task.example(2)
    program = torch.export.export(model, example, dynamic_shapes=dynamic_shapes(model, example))
    with torch.inference_mode():
        one = task.example(3)
        torch.testing.assert_close(program.module()(*one), model(*one), atol=1e-4, rtol=1e-4)


def test_openvino_reports_nothing_to_its_makers(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    program = """
import sys
from pathlib import Path
from subjects import SMALL, subject
from bigmodel_cli.export.proof import prove
assert prove(subject("perceptron", SMALL), "openvino", Path("out"), seconds=0).passed
assert sys.modules["openvino_telemetry"] is None
"""
    plain = {k: v for k, v in os.environ.items() if k not in ("CI", "TF_BUILD", "JENKINS_URL")}
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    (tmp_path / "home").mkdir()
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=True,
        env={**plain, "PYTHONPATH": path, "HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert not (tmp_path / "home/intel").exists() and {p.name for p in (tmp_path / "out").glob("model.*")} == {
        "model.xml", "model.bin",
    }  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_any_batch_size_runs_from_the_folder(name: str, tmp_path: Path) -> None:
    what = subject(sizes=(2,))
    assert made(name, tmp_path, what).passed
    run = read_folder(tmp_path / "out").open(trust=exports.get(name).meta.get("check") is None)
    for size in (1, 3, 7):
        x = what.task.prepare(images(IMAGES, (size,))[0])["image"]
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(run(x.numpy())), what.model(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", QUICK)
def test_channels_last_weights(name: str, tmp_path: Path) -> None:
    what = subject()
    what.model.to(memory_format=torch.channels_last)
    assert made(name, tmp_path, what).passed


def test_onnx_carries_classes_and_preprocessing_in_one_valid_file(tmp_path: Path) -> None:
    library = pytest.importorskip("onnx")
    what = subject()
    made("onnx", tmp_path, what)
    model = library.load(str(tmp_path / "out/model.onnx"), load_external_data=False)
    library.checker.check_model(model, full_check=True)
    props = {p.key: p.value for p in model.metadata_props}
    assert props["arch"] == "cnn" and tuple(json.loads(props["classes"])) == CLASSES
    assert json.loads(props["preprocess"]) == what.task.preprocessing()
    assert not [t for t in model.graph.initializer if t.data_location == library.TensorProto.EXTERNAL]
    (given,), (answer,) = model.graph.input, model.graph.output
    assert (given.name, answer.name) == ("input", "logits")
    assert given.type.tensor_type.shape.dim[0].dim_param and given.type.tensor_type.shape.dim[1].dim_value == 3
    assert [o.version for o in model.opset_import if o.domain == ""] == [18]


def test_the_opset_is_chosen(tmp_path: Path) -> None:
    library = pytest.importorskip("onnx")
    assert made("onnx", tmp_path, options={"opset": 20}).passed
    model = library.load(str(tmp_path / "out/model.onnx"))
    assert [o.version for o in model.opset_import if o.domain == ""] == [20]
    assert read_folder(tmp_path / "out").about["options"] == {"opset": 20}


class Windows(nn.Module):
    """Attention within windows, over five dimensions: batch, heads, windows, tokens, features."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(x).unflatten(1, (4, 5)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (2, 4)).permute(0, 3, 1, 2, 4) for part in parts)
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(found.permute(0, 2, 3, 1, 4).flatten(3).mean((1, 2)))  # type: ignore[no-any-return]


def test_onnx_takes_attention_within_windows(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model, plain = Windows().eval(), nn.functional.scaled_dot_product_attention
    exports.get("onnx")(model, (torch.randn(2, 20, 8),), tmp_path / "m.onnx", {})
    assert nn.functional.scaled_dot_product_attention is plain
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(3, 20, 8)
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), model(x))


def test_pt2_carries_them_and_needs_torch_alone(tmp_path: Path) -> None:
    made("pt2", tmp_path)
    program = """
import json, sys, torch
extra = {"bigmodel.json": ""}
model = torch.export.load(sys.argv[1], extra_files=extra).module()
print(json.dumps([tuple(model(torch.zeros(4, 3, 32, 32)).shape), json.loads(extra["bigmodel.json"])["classes"]]))
assert not [m for m in sys.modules if m.startswith("bigmodel")]
"""
    command = [sys.executable, "-c", program, "model.pt2"]
    done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[4, 5], list(CLASSES)]


def test_safetensors_carries_them_and_holds_the_very_weights(tmp_path: Path) -> None:
    from safetensors import safe_open

    what = subject()
    made("safetensors", tmp_path, what)
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    assert metadata["format"] == "pt" and metadata["arch"] == "cnn"
    assert tuple(json.loads(metadata["classes"])) == CLASSES
    expected = what.model.state_dict()
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[k], v) for k, v in expected.items())


@pytest.mark.parametrize("name", QUICK)
def test_nothing_is_printed(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made(name, tmp_path)
    assert capfd.readouterr() == ("", "")


class Branching(nn.Module):
    """Which way it goes depends on the values of its input: no tracer can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_a_model_that_cannot_be_traced_is_one_line(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=f"cannot be written as {name}: .*data-dependent") as caught:
        made(name, tmp_path, subject(model=Branching()))
    assert "\n" not in caught.value.line and list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what Python does for a module that is not there
    with pytest.raises(MachineError, match=f"needs {package}") as caught:
        made("onnx", tmp_path)
    assert caught.value.hint == install_line("onnx") and list(tmp_path.iterdir()) == []


def test_needed_gives_the_modules() -> None:
    assert [m.__name__ for m in runtime.import_packages("onnx", "json", "logging")] == ["json", "logging"]


def test_a_folder_is_opened_without_torch(tmp_path: Path) -> None:
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("needs onnxruntime")
    what = subject()
    made("onnx", tmp_path, what)
    program = """
import sys, numpy
sys.modules["torch"] = None
from pathlib import Path
from bigmodel_cli.export.folder import read_folder
folder = read_folder(Path("out"))
print(folder.labels[1], folder.spec.height, folder.open()(numpy.zeros((2, 3, 32, 32), numpy.float32)).shape)
"""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["één", "32", "(2,", "5)"], done.stderr


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("onnx", "transformer", {"layers": 1, "width": 16}),
    ("pt2", "gpt", {"layers": 1, "width": 32, "position": "rope", "norm": "rms", "mlp": "swiglu", "kv_heads": 2}),
    ("pt2", "text-encoder", {"layers": 1, "width": 16}),
    ("pt2", "text-cnn", {"width": 8, "filters": 4}),
]


def texts(arch: str) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    tokens = torch.randint(4, 256, (5, 20))
    tokens[2, 9:] = 0  # fill
    index = torch.arange(5)
    if arch == "transformer":
        return [{"source": tokens, "target": torch.randint(4, 256, (5, 13)), "index": index}]
    if arch == "gpt":
        return [{"tokens": torch.randint(4, 256, (5, 129)), "length": torch.tensor([64, 9, 3, 64, 1]), "index": index}]
    return [{"tokens": tokens, "label": torch.arange(5) % 2, "index": index}]


@pytest.mark.parametrize(("name", "arch", "options"), CASES)
def test_a_text_model_takes_texts_of_any_length(name: str, arch: str, options: dict[str, Any], tmp_path: Path) -> None:
    what = subject(arch, TEXTS, raw=texts(arch), **options)
    proof = made(name, tmp_path, what)
    assert proof.passed and proof.inputs == 5
    assert proof.metrics["export"]["loss"]["value"] == pytest.approx(proof.metrics["checkpoint"]["loss"]["value"])
    run = read_folder(tmp_path / "out").open(trust=exports.get(name).meta.get("check") is None)
    for length in (1, 64):  # one token, and the whole context
        inputs = tuple(torch.randint(4, 256, (2, length)) for _ in what.task.inputs)
        with torch.inference_mode():
            expected = what.model(*inputs)
        torch.testing.assert_close(torch.from_numpy(run(*(x.numpy() for x in inputs))), expected, atol=1e-4, rtol=0)
