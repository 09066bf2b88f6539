"""A stranger's export folder: its code runs only if the user says ``--trust``, and its files agree or are refused."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from subjects import GREY, subject

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.preprocessing import describe_image_steps
from bigmodel_cli.core.registry import exports
from bigmodel_cli.core.specs import ImageSpec, TextSpec
from bigmodel_cli.core.tokenizers.tokens import describe_tokenizer
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.checkpoint.inspect import inspect_file
from bigmodel_cli.export.agreement import WORDS, disagreement
from bigmodel_cli.export.checksums import SUMS, sums_text
from bigmodel_cli.export.folder import read_folder
from bigmodel_cli.export.item_index import build_index
from bigmodel_cli.export.pixels import describe_in_graph
from bigmodel_cli.export.proof import prove
from bigmodel_cli.export.retrieval import Retrieval, read_histories, with_index

CODE = ("aoti", "coreml", "executorch", "litert", "pt2", "torchscript")
"""The formats that hold code, or whose runtime does not check what it reads."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good export of each of these formats."""
    root = tmp_path_factory.mktemp("whole")
    drawn = subject("perceptron", GREY, (2,))
    recipe = {**drawn.about["recipe"], "data": {"name": "digits", "dir": None}}
    what = dataclasses.replace(drawn, about={**drawn.about, "recipe": recipe})
    for name in ("onnx", "pt2", "safetensors"):
        assert prove(what, name, root / name, seconds=0).passed
    return {name: root / name for name in ("onnx", "pt2", "safetensors")}


def sealed(folder: Path) -> Path:
    """`folder` with digests that are right again, as a stranger would send it."""
    proof = json.loads((folder / "proof.json").read_text())
    (model,) = folder.glob("model.*")
    proof["files"] = {model.name: hashlib.sha256(model.read_bytes()).hexdigest()}
    (folder / "proof.json").write_text(json.dumps(proof))
    (folder / SUMS).write_text(sums_text(folder))
    return folder


def changed(source: Path, target: Path, file: str, **values: Any) -> Path:
    shutil.copytree(source, target)
    held = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps({**held, **values}))
    return target


class Touches:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def poisoned(source: Path, target: Path, canary: Path) -> Path:
    """The pt2 folder `source` with its weights pickled together with a call."""
    shutil.copytree(source, target)
    with zipfile.ZipFile(source / "model.pt2") as old, zipfile.ZipFile(target / "model.pt2", "w") as new:
        entries = {entry.filename: old.read(entry) for entry in old.infolist()}
        (listing,) = (name for name in entries if name.endswith("weights_config.json"))
        config = json.loads(entries[listing])
        weight = next(iter(config["config"].values()))
        weight["use_pickle"] = True
        entries[listing] = json.dumps(config).encode()
        (stored,) = (name for name in entries if name.endswith("/" + weight["path_name"]))
        entries[stored] = pickle.dumps(Touches(canary))
        for name, data in entries.items():
            new.writestr(name, data)
    return sealed(target)


def test_every_format_has_a_check_or_needs_trust() -> None:
    """The negative control of the list: a new format is opened without --trust only if it registers a check."""
    assert tuple(n for n in exports.names() if exports.get(n).meta.get("check") is None) == CODE


@pytest.mark.parametrize("command", ["predict", "eval", "serve"])
def test_a_poisoned_pt2_is_not_opened(command: str, whole: dict[str, Path], tmp_path: Path, run_cli: Run) -> None:
    folder = poisoned(whole["pt2"], tmp_path / "sent", tmp_path / "canary")
    Image.new("L", (28, 28)).save(tmp_path / "x.png")
    done = run_cli(command, folder, *(["x.png"] if command == "predict" else []))
    assert done.returncode == 2 and "can hold code" in done.stderr and "--trust" in done.stderr
    assert not (tmp_path / "canary").exists()


def test_a_pt2_is_read_as_far_as_that_runs_nothing(whole: dict[str, Path], tmp_path: Path) -> None:
    """Its weights and what stands beside them; a pickled weight is named and refused. Oracle: torch's own loader."""
    sound = inspect_file(whole["pt2"] / "model.pt2")
    theirs = torch.export.load(whole["pt2"] / "model.pt2").state_dict
    ours = checkpoint.read(whole["pt2"] / "model.pt2")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads(sound.metadata["classes"]) == json.loads((whole["pt2"] / "labels.json").read_text())
    sent = poisoned(whole["pt2"], tmp_path / "sent", tmp_path / "canary") / "model.pt2"
    assert inspect_file(sent).opaque_names() and len(inspect_file(sent).special) == len(ours)
    with pytest.raises(InputError, match="would run the pickle of"):
        checkpoint.read(sent)
    assert not (tmp_path / "canary").exists()


def test_a_weight_of_a_pt2_with_a_part_of_a_number_is_refused(whole: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    with zipfile.ZipFile(whole["pt2"] / "model.pt2") as source, zipfile.ZipFile(file, "w") as target:
        for entry in source.infolist():
            weight = "/data/weights/weight_" in f"/{entry.filename}"
            target.writestr(entry.filename, source.read(entry) + b"x" * weight)
    with pytest.raises(InputError, match="bytes of float32"):
        checkpoint.read(file)


def test_a_model_that_its_runtime_refuses_is_the_folders_fault(
    whole: dict[str, Path], tmp_path: Path, run_cli: Run
) -> None:
    shutil.copytree(whole["onnx"], tmp_path / "cut")
    model = tmp_path / "cut" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-40])
    sealed(tmp_path / "cut")
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    done = run_cli("predict", tmp_path / "cut", tmp_path / "x.png")
    assert done.returncode == 2 and "model.onnx" in done.stderr and "bug" not in done.stderr


def test_the_canary_sings_when_trusted(whole: dict[str, Path], tmp_path: Path) -> None:
    """Negative control: with --trust said, torch runs what the file asks for."""
    folder = read_folder(poisoned(whole["pt2"], tmp_path / "sent", tmp_path / "canary"))
    with pytest.raises(Exception, match=r"pt2|load"):
        folder.open(trust=True)
    assert (tmp_path / "canary").exists()


def test_trust_is_said_each_time(whole: dict[str, Path], tmp_path: Path, run_cli: Run) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "x.png")
    assert run_cli("predict", whole["pt2"], "x.png").returncode == 2
    assert run_cli("predict", whole["pt2"], "x.png", "--trust").returncode == 0
    assert run_cli("predict", whole["pt2"], "x.png").returncode == 2
    needless = run_cli("predict", whole["onnx"], "x.png", "--trust")
    assert needless.returncode == 0 and "no effect" in needless.stderr


def test_a_face_of_onnx_with_another_format(whole: dict[str, Path], tmp_path: Path) -> None:
    """export.json names the loader, so what it names is held to the same rule; and a file to its format."""
    face = changed(whole["onnx"], tmp_path / "face", "export.json", format="pt2")
    shutil.copy(whole["pt2"] / "model.pt2", face)
    (face / "model.onnx").unlink()
    with pytest.raises(InputError, match="can hold code"):
        read_folder(sealed(face)).open()
    for name in ("onnx", "safetensors"):
        disguised = tmp_path / name
        shutil.copytree(whole[name], disguised)
        (model,) = disguised.glob("model.*")
        shutil.copy(whole["pt2"] / "model.pt2", model)
        with pytest.raises(InputError, match=r"(no ONNX model|no safetensors file).*: it is a \.pt2 program"):
            read_folder(sealed(disguised)).open()


def zipped(*names: str) -> bytes:
    """A zip of compressed entries, as torch.jit writes them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


DISGUISED = {
    "a TorchScript program": zipped("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl"),
    "an AOTInductor package": zipped("m/data/aotinductor/model/a.so", "m/archive_format"),
    "pickle file": pickle.dumps([1]),
    "a program (ELF)": Path("/bin/sh").read_bytes()[:4000],
    "a script": b"#!/bin/sh\necho\n",
    "GGUF": b"GGUF" + bytes(60),
}


@pytest.mark.parametrize("kind", DISGUISED)
def test_what_is_disguised_is_named(kind: str, tmp_path: Path) -> None:
    """Whatever its name says, and by every reader."""
    for name, read in (
        ("model.onnx", exports.get("onnx").meta["check"]),
        ("model.safetensors", exports.get("safetensors").meta["check"]),
        ("best.pt", inspect_file),
    ):
        (tmp_path / name).write_bytes(DISGUISED[kind])
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        assert kind in caught.value.line, caught.value.line


def test_onnx_data_outside_its_folder_is_refused(whole: dict[str, Path], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "sent"
    shutil.copytree(whole["onnx"], folder)
    model = onnx.load(folder / "model.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for location, fine in (("../secret", False), ("/etc/passwd", False), ("a\0b", False), ("weights", True)):
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=location)
        (folder / "weights").write_bytes(bytes(4 * 28 * 28 * 5))
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        check = exports.get("onnx").meta["check"]
        if fine:
            check(folder / "model.onnx")
        else:
            with pytest.raises(InputError, match="its tensors are in"):
                check(folder / "model.onnx")


@pytest.mark.parametrize("file", ["labels.json", "preprocess.json", "export.json", "example.py", "MODEL_CARD.md"])
def test_any_changed_file_is_named(file: str, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole["onnx"], folder)
    before = read_folder(folder).digest
    read_folder(folder).open()
    (folder / file).write_bytes((folder / file).read_bytes() + b"\n")
    with pytest.raises(InputError, match=file):
        read_folder(folder).open()
    (folder / SUMS).write_text(sums_text(folder))
    assert read_folder(folder).digest != before


@pytest.mark.parametrize("command", ["predict", "serve"])
def test_reversed_labels_are_refused_even_with_new_digests(
    command: str, whole: dict[str, Path], tmp_path: Path, run_cli: Run
) -> None:
    """As for predict, which reads export.json, so for serve, which reads labels.json: 3 for one was 6 for the other."""
    folder = tmp_path / "sent"
    shutil.copytree(whole["onnx"], folder)
    labels = json.loads((folder / "labels.json").read_text())
    (folder / "labels.json").write_text(json.dumps(labels[::-1]))
    Image.new("L", (28, 28)).save(tmp_path / "x.png")
    done = run_cli(command, sealed(folder), *(["x.png"] if command == "predict" else []))
    assert done.returncode == 2 and "labels.json" in done.stderr


RESIZE = {"height": 28, "width": 28, "interpolation": "bilinear, antialiased"}
STEPS: dict[str, Any] = {
    "mean": [0.5], "std": [0.5], "scale": 1, "mode": "RGB", "layout": "NHWC uint8", "resize": {**RESIZE, "height": 27},
    "resize_square": RESIZE, "crop": None, "value_range": [0, 9], "in_the_graph": {}, "outputs": {"temperature": [2.0]},
}  # fmt: skip


@pytest.mark.parametrize("values", [*({key: value} for key, value in STEPS.items()),
                                    {"resize": {**RESIZE, "interpolation": "bicubic, antialiased"}}])  # fmt: skip
def test_another_preprocessing_is_refused(values: dict[str, Any], whole: dict[str, Path], tmp_path: Path) -> None:
    """Other programs follow preprocess.json, and serve does; predict goes by export.json."""
    folder = changed(whole["onnx"], tmp_path / "sent", "preprocess.json", **values)
    with pytest.raises(InputError, match=rf"preprocess\.json: another {next(iter(values))} than export\.json"):
        read_folder(sealed(folder)).open()


def test_each_step_of_a_preprocessing_is_compared() -> None:
    """Of a spec with every step, and in the graph: no key but words for people can change."""
    spec = ImageSpec(3, 28, 24, ("a",), (0.5,) * 3, (0.1,) * 3, 40, 0.8, "bicubic", (0, 9))
    plain = describe_image_steps(spec)
    for in_graph, told in ((False, plain), (True, describe_in_graph(plain, None))):
        assert disagreement(spec, spec.to_dict(), told, in_graph, fixed=False) is None
        for key in (told.keys() | told.get("in_the_graph", {}).keys()) - {"in_the_graph"}:
            inner = key in told.get("in_the_graph", {})
            other = {"in_the_graph": {**told["in_the_graph"], key: "x"}} if inner else {key: {}}
            found = disagreement(spec, spec.to_dict(), {**told, **other}, in_graph, fixed=False)
            assert (found is None) == (key in WORDS), key


def test_what_a_text_is_encoded_by_is_compared() -> None:
    spec = TextSpec("word", ("<pad>", "<unk>", "a"), 16, chat=("a", "b", "c"))
    told = {**describe_tokenizer(spec), "chat": ["a", "b", "c"]}
    assert disagreement(spec, spec.to_dict(), told, False, False) is None
    for key, value in (("tokenizer", "char"), ("vocabulary", ["a"]), ("context", 9), ("chat", []), ("outputs", {})):
        assert disagreement(spec, spec.to_dict(), {**told, key: value}, False, False) == key
    assert disagreement(spec, spec.to_dict(), {"chat": told["chat"]}, False, False) == "tokenizer"


def test_an_export_of_an_older_version_opens(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(whole["onnx"], folder)
    about = json.loads((folder / "export.json").read_text())
    (folder / SUMS).unlink()
    with pytest.raises(InputError, match="SHA256SUMS: not there"):
        read_folder(folder).open()
    (folder / "export.json").write_text(json.dumps({k: v for k, v in about.items() if k != "checksums"}))
    assert read_folder(folder).open()(torch.zeros(1, 1, 28, 28).numpy()).shape == (1, 5)


@pytest.mark.parametrize("file", ["labels.json", "SHA256SUMS"])
def test_a_device_is_no_file(file: str, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "sent"
    shutil.copytree(whole["onnx"], folder)
    (folder / file).unlink()
    (folder / file).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=file):
        read_folder(folder).open()


ESCAPED = '{"model_type": "evil", "architectures": ["X"], "\\u0061uto_map": {"AutoConfig": "%s--evil.Config"}}'
"""``auto_map`` as no search for its bytes finds it; the module is in another folder, so that no file here is code."""
VOCABULARY: dict[str, Any] = {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}
TOKENIZER = json.dumps({"version": "1.0", "added_tokens": [], "model": VOCABULARY})
BOMB = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
FOR_TRANSFORMERS: dict[str, tuple[str, str, str]] = {
    "an escaped key": ("config.json", ESCAPED, "auto_map"),
    "a key deeper down": ("generation_config.json", '{"a": [{"auto_map": {}}]}', "auto_map"),
    "a key of the tokenizer": ("tokenizer_config.json", '{"auto_map": {}}', "auto_map"),
    "another config": ("config.json", '{"configuration_files": ["config.4.0.0.json"]}', "configuration_files"),
    "the other config itself": ("config.4.0.0.json", ESCAPED, "auto_map"),
    "a tokenizer elsewhere": ("tokenizer_config.json", '{"fast_tokenizer_files": ["../../x"]}', "fast_tokenizer_files"),
    "a config that is too large": ("config.json", ESCAPED + " " * 16_000_000, "more than 16000000 bytes"),
    "a key that is there twice": ("config.json", '{"a": 1, "a": 2}', "cannot be read"),
    "no JSON": ("config.json", "{", "cannot be read"),
    "a tokenizer that swells": (
        "tokenizer.json",
        TOKENIZER[:-1] + f', "normalizer": {json.dumps(BOMB)}}}',
        "lengthens",
    ),
    "weights elsewhere": ("adapter_config.json", "{}", "weights elsewhere"),
    "a link out": ("special_tokens_map.json", "", "no regular file of this folder"),
    "no tokenizer": ("tokenizer.json", "", "tokenizer.json: not there"),
}


def for_transformers(source: Path, target: Path) -> Path:
    """A folder that says to be one for transformers; a runtime would have to read its settings to find out more."""
    changed(source, target, "export.json", format="huggingface")
    (target / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForSequenceClassification"]}')
    (target / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (target / "tokenizer.json").write_text(TOKENIZER)
    return target


def evil(root: Path) -> Path:
    """A folder with a module that leaves a canary in `root` when it is imported."""
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "evil.py").write_text(
        f"from transformers import PretrainedConfig\nopen({str(root / 'canary')!r}, 'w')\n"
        "class Config(PretrainedConfig):\n    model_type = 'evil'\n"
    )
    return root / "elsewhere"


@pytest.mark.parametrize("case", FOR_TRANSFORMERS)
def test_a_folder_for_transformers_names_no_code_and_no_other_file(
    case: str, whole: dict[str, Path], tmp_path: Path, run_cli: Run
) -> None:
    name, text, words = FOR_TRANSFORMERS[case]
    folder = for_transformers(whole["safetensors"], tmp_path / "sent")
    exports.get("huggingface").meta["check"](folder / "model.safetensors")  # as it is, it passes
    (folder / name).unlink(missing_ok=True)
    if text:
        (folder / name).write_text(text.replace("%s", str(evil(tmp_path))))
    elif case == "a link out":
        (tmp_path / "other.json").write_text("{}")
        (folder / name).symlink_to(tmp_path / "other.json")
    sealed(folder)
    if case == "a link out":  # no digest of what lies outside
        sums = (folder / SUMS).read_text().splitlines(keepends=True)
        (folder / SUMS).write_text("".join(line for line in sums if name not in line))
    Image.new("L", (28, 28)).save(tmp_path / "x.png")
    options = {"input": "y\n"} if case == "an escaped key" else {}  # a new process takes seconds
    done = run_cli("predict", folder, "x.png", **options)
    assert done.returncode == 2 and words in done.stderr.replace("\n", " ") and name in done.stderr, done.stderr
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("asks", [False, True])
def test_the_runtime_of_transformers_asks_nobody(
    asks: bool, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check, too. Negative control: the library left to its defaults asks, and hears "y"."""
    transformers = pytest.importorskip("transformers")
    folder = for_transformers(whole["safetensors"], tmp_path / "sent")
    (folder / "config.json").write_text(ESCAPED % evil(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    if asks:
        transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    else:
        with pytest.raises(ValueError, match="trust_remote_code"):
            exports.get("huggingface").meta["run"](folder / "model.safetensors", None)
    assert (tmp_path / "canary").exists() is asks


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("preprocess.json", {"in_the_graph": 5}), ("proof.json", {"files": {"model.onnx": "", "a\0b": ""}}),
        ("proof.json", {"files": {"model.onnx": "", "a": ""}}),
        ("proof.json", {"files": {"model.onnx": "", "a" * 999: ""}}),
    ],
)  # fmt: skip
def test_damage_of_any_kind_is_one_clear_error(
    file: str, values: dict[str, Any], whole: dict[str, Path], tmp_path: Path, run_cli: Run
) -> None:
    folder = changed(whole["onnx"], tmp_path / "sent", file, **values)
    (folder / "a").symlink_to("a")  # in a circle
    if file == "proof.json":  # as of older versions, whose files are checked by the proof alone
        values["files"]["model.onnx"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))
        about = json.loads((folder / "export.json").read_text())
        (folder / "export.json").write_text(json.dumps({k: v for k, v in about.items() if k != "checksums"}))
        (folder / SUMS).unlink()
    else:
        (folder / SUMS).write_text(sums_text(folder))
    Image.new("L", (28, 28)).save(tmp_path / "x.png")
    done = run_cli("predict", folder, "x.png")
    assert done.returncode == 2 and str(folder) in done.stderr and "bug" not in done.stderr, done.stderr


@pytest.mark.parametrize("loss", ["x", None])
def test_a_loss_that_is_no_object_is_damage(loss: str | None, whole: dict[str, Path], tmp_path: Path) -> None:
    about = json.loads((whole["onnx"] / "export.json").read_text())
    recipe = {**about["recipe"], "loss": loss}
    folder = changed(whole["onnx"], tmp_path / "sent", "export.json", recipe=recipe, task="image_classification")
    with pytest.raises(InputError, match=r"export\.json: damaged: loss is no object"):
        read_folder(sealed(folder)).spec  # noqa: B018 (it is made when it is asked for)


NET = '<net><layers><layer><data offset="{}" size="{}"/></layer></layers></net>'


def foreign(name: str, folder: Path, whole: dict[str, Path]) -> Path:
    """A sound folder of a format that has files beside its model; the model. An index of faiss only where it is."""
    from safetensors.numpy import save_file

    folder.mkdir()
    if name == "openvino":
        (folder / "model.xml").write_text(NET.format(2, 6))
        (folder / "model.bin").write_bytes(bytes(8))
        return folder / "model.xml"
    shutil.copy(whole["onnx"] / "model.onnx", folder)
    vectors = np.eye(6, 4, dtype=np.float32)
    save_file({"vectors": vectors}, folder / "items.safetensors")
    save_file({"values": np.arange(1, 7), "offsets": np.array([0, 3, 6])}, folder / "histories.safetensors")
    if importlib.util.find_spec("faiss"):
        build_index(vectors, folder / "items.index")
    return folder / "model.onnx"


def opened(name: str, model: Path) -> None:
    """What a command reads of it before a runtime does, and the library of the index."""
    exports.get(name).meta["check"](model)
    if name == "retrieval":
        assert read_histories(model.parent) is not None
        with_index(Retrieval(len, np.eye(6, 4, dtype=np.float32)), model.parent)


def linked(file: Path) -> None:
    """The file as a link to itself, outside its folder."""
    file.rename(file.parent.parent / "outside")
    file.symlink_to("../outside")


def piped(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def long_header(file: Path) -> None:
    file.write_bytes((1 << 40).to_bytes(8, "little") + file.read_bytes()[8:])


def far_tensor(file: Path) -> None:
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b'"data_offsets":[0,', b'"data_offsets":[9,'))
    assert file.read_bytes() != raw


def net(offset: str, size: str) -> Callable[[Path], None]:
    return lambda file: (file.write_text(NET.format(offset, size)), None)[1]


EACH = (linked, piped)
BROKEN: list[tuple[str, str, Callable[[Path], Any]]] = [
    *(("openvino", "model.bin", change) for change in (*EACH, cut)), ("openvino", "model.xml", cut),
    *(("openvino", "model.xml", net(*values)) for values in (("4", "5"), ("-2", "4"), ("1_0", "1"), ("0", "9" * 30))),
    *(("retrieval", "items.safetensors", change) for change in (*EACH, long_header)),
    *(("retrieval", "histories.safetensors", change) for change in (*EACH, cut, long_header, far_tensor)),
    *(("retrieval", "items.index", change) for change in (*EACH, cut)),
]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("name", "file", "change"), BROKEN)
def test_files_beside_a_model_are_its_own_and_whole(
    name: str, file: str, change: Callable[[Path], Any], whole: dict[str, Path], tmp_path: Path
) -> None:
    """Though no digest need list them: cut off, with sizes that lie, links out and pipes. Control: they are opened."""
    model = foreign(name, tmp_path / "sent", whole)
    if not (model.parent / file).exists():
        pytest.skip("needs faiss")
    opened(name, model)
    change(model.parent / file)
    with pytest.raises(InputError) as caught:
        opened(name, model)
    assert str(model.parent) in caught.value.what and caught.value.exit_code == 2
    assert len(caught.value.line) <= 200


@pytest.mark.parametrize("change", [cut, long_header, far_tensor, linked, piped])
def test_weights_are_the_folders_own_and_whole(
    change: Callable[[Path], Any], whole: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "sent"
    shutil.copytree(whole["safetensors"], folder)
    change(folder / "model.safetensors")
    if change not in EACH:
        sealed(folder)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        read_folder(folder).open()


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_the_digests_keeps_nobody_waiting(whole: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(whole["onnx"], tmp_path / "sent")
    piped(tmp_path / "sent" / SUMS)
    with pytest.raises(InputError, match=SUMS):
        assert not read_folder(tmp_path / "sent").digest
