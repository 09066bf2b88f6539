"""example.py in a process of its own, on real files: it answers as the checkpoint does, or the export fails."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from subjects import CLASSES, GREY, IMAGES, SMALL, subject
from torch import nn

from bigmodel_cli.core.interactions import InteractionSpec
from bigmodel_cli.core.processes import call_limit
from bigmodel_cli.core.registry import exports, tasks
from bigmodel_cli.core.tokenizers.tokens import encode_padded, tokenizer, train_bpe
from bigmodel_cli.core.types import ImageSpec, TextSpec
from bigmodel_cli.export import example, example_text
from bigmodel_cli.export.checksums import SUMS, sums_text
from bigmodel_cli.export.example_interactions import interactions_example
from bigmodel_cli.export.proof import Proof, prove
from bigmodel_cli.export.runtime import Runtime
from bigmodel_cli.export.subject import Subject

LARGE = ImageSpec(3, 28, 24, CLASSES, (0.5, 0.25, 0.125), (0.1, 0.2, 0.3), square=40, crop=0.8)
CROPPED = ImageSpec(3, 32, 32, CLASSES, (0.5,) * 3, (0.2,) * 3, square=40, crop=0.8)


def made(name: str, folder: Path, what: Subject, **more: Any) -> Proof:
    return prove(what, name, folder / "out", **{"seconds": 0, **more})


@pytest.mark.parametrize("spec", [IMAGES, GREY, CROPPED, LARGE], ids=["plain", "grey", "cropped", "all steps"])
def test_it_prepares_a_image_as_training_did(spec: ImageSpec, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = made("onnx", tmp_path, subject(spec=spec, sizes=(3,)))
    assert found.passed and found.example and found.example["answer"] in CLASSES, found.failed
    script = (tmp_path / "out/example.py").read_text()
    assert "torch" not in script and "bigmodel" not in script and len(script.splitlines()) <= 75


def test_it_needs_torch_alone_where_torch_is_the_runtime(tmp_path: Path) -> None:
    found = made("pt2", tmp_path, subject(sizes=(3,)))
    assert found.passed and found.example and found.example["answer"] in CLASSES


SAID = "A fine film, one <pad> of the best naïve ones: 東京"
SPECIALS = ("<pad>", "<unk>", "<start>", "<end>")


def text_spec(kind: str, classes: tuple[str, ...], context: int) -> TextSpec:
    if kind == "bpe":
        pytest.importorskip("tokenizers")
        return TextSpec(kind, (train_bpe([SAID] * 3, 300),), context, classes)
    vocabulary = {"byte": (), "char": (*SPECIALS, *sorted(set(SAID))), "word": (*SPECIALS, "fine", "one", "the")}
    vocabulary["wordpunct"] = (*vocabulary["word"], ",", "京", ":")
    return TextSpec(kind, vocabulary[kind], context, classes)


@pytest.mark.parametrize("kind", ["byte", "char", "word", "wordpunct", "bpe"])
@pytest.mark.parametrize(("classes", "context"), [(("bad", "good", "fine"), 16), ((), 16), (("bad", "good"), 200)])
def test_it_makes_tokens_as_training_did(
    kind: str, classes: tuple[str, ...], context: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network stands for any: its logits are another number for every other row of tokens."""
    monkeypatch.setattr(example_text, "_sample", lambda subject, place: SAID + " " + SAID)
    spec = text_spec(kind, classes, context)
    code = f"logits = np.sin(np.cumsum(x)[:, None] * np.arange(1, {len(classes) or tokenizer(spec).size} + 1))[None]"
    code += "[:, -1]" if classes else ""
    own = Runtime(("numpy",), "import math", code)
    entry = dataclasses.replace(exports.get("onnx"), meta={"runtime": own})
    name = "text_classification" if classes else "language_modeling"
    task = tasks.get(name)(spec, nn.CrossEntropyLoss(reduction="none"), None)
    tokens = encode_padded([SAID], spec)
    raw = {"tokens": tokens, "label": torch.zeros(1).long(), "index": torch.zeros(1)}
    script = example.example_script(entry, task, task.preprocessing())
    assert script and len(script.splitlines()) <= 75
    for file, text in (
        ("example.py", script), ("labels.json", json.dumps(classes)),
        ("preprocess.json", json.dumps(task.preprocessing())),
    ):  # fmt: skip
        (tmp_path / file).write_text(text, encoding="utf-8")
    (tmp_path / SUMS).write_text(sums_text(tmp_path), encoding="utf-8")

    def run(x: Any) -> Any:
        held: dict[str, Any] = {"np": np, "x": x}
        exec(code, held)
        return held["logits"]

    found = example.run_example(entry, Subject(nn.Identity(), task, [raw], {}), tmp_path, run)
    assert found and found["failed"] == [] and found["answer"], found


def test_a_text_model_answers_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    spec = text_spec("word", ("bad", "good"), 16)
    index = torch.arange(2)
    raw = [{"tokens": encode_padded([SAID, "one"], spec), "label": index, "index": index}]
    found = made("onnx", tmp_path, subject("text-cnn", spec, raw=raw, width=8, filters=4))
    assert found.passed and found.example and found.example["answer"] in ("bad", "good"), found.failed


def test_weights_alone_are_shown(tmp_path: Path) -> None:
    found = made("safetensors", tmp_path, subject("perceptron", SMALL, (3,)))
    assert found.passed and found.example and "head" in found.example["answer"]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("import bigmodel_cli", "ended with 1: ModuleNotFoundError"),
        ("import torch", "ended with 1: ModuleNotFoundError"),
        ("logits = np.zeros((1, 3))\nlogits[0, 2] = 5", "off by"),
        ("sys.exit(7)", "ended with 7: no error message"),
        ("logits = np.zeros((1, 3))\nlabels = ['x', 'y', 'z']", "an unknown class: "),
        ("sys.exit(0)", "printed nothing"),
    ],
)
def test_a_wrong_example_fails_the_export(
    run: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = exports.get("safetensors")
    runtime = Runtime(("numpy",), "", run)
    monkeypatch.setitem(
        exports._entries, "safetensors", dataclasses.replace(entry, meta={**entry.meta, "runtime": runtime})
    )
    found = made("safetensors", tmp_path, subject("perceptron", SMALL, (3,)))
    assert not found.passed and message in found.failed[0], found.failed
    assert list(tmp_path.iterdir()) == []


def test_what_it_says_is_held_against_the_probabilities() -> None:
    expected = torch.tensor([0.7, 0.2, 0.1]).double()
    names = (" a  b ", "50%", "c")
    printed = "70.0000%   a  b \n20.0400%  50%\n10.0000%  c\n"
    assert example._compare(printed, expected, names) == {"answer": " a  b ", "probability": "70.0000%", "failed": []}
    off = example._compare(printed.replace("20.04", "20.20"), expected, names)["failed"]
    assert off == ["example.py is off by 0.002 in the probability of 50%"]


def test_the_interpreter_is_this_one() -> None:
    done = example._run_isolated(Path(__file__).with_name("subjects.py"), [], Path.cwd(), allow_torch=True)
    assert done.returncode == 1 and "bigmodel_cli" in done.stderr and sys.executable in done.args


@pytest.mark.parametrize(("argument", "given"), [("c,d", [1, 2]), ("a,b", [0]), ("", []), ("a,b,c", None)])
def test_an_item_whose_id_has_a_comma_is_given_alone(argument: str, given: list[int] | None) -> None:
    spec = InteractionSpec(2, 3, item_ids=("a,b", "c", "d"))
    task = tasks.get("recommendation")(spec, None, None)
    script = interactions_example().script(exports.get("onnx").meta["runtime"], task, {})
    assert script is not None
    reads = script[script.index("names =") : script.index("x = [np")]
    scope: dict[str, Any] = {"place": {name: i for i, name in enumerate(spec.item_ids)}}
    scope["sys"] = types.SimpleNamespace(argv=["example.py", argument], exit=sys.exit)
    if given is None:
        with pytest.raises(SystemExit, match="no item 'a'"):
            exec(reads, scope)
        return
    exec(reads, scope)
    assert scope["given"] == given


def ranking() -> Subject:
    spec = InteractionSpec(4, 30, 6)
    user = torch.arange(4)
    held = {"user": user, "history": torch.arange(1, 25).view(4, 6), "relevant": user[:, None], "index": user}
    return subject("two-tower", spec, raw=[{**held, "seen": held["history"]}], width=8)


FOREIGN = {
    "an image of another size": (
        "onnx",
        lambda: dataclasses.replace(subject("perceptron", GREY, (2,)), pixels=True),
        {},
    ),
    "the answer of the example": ("onnx", lambda: subject("text-cnn", **short_texts(), width=8, filters=4), {}),
    "the users of an index": ("retrieval", ranking, {"index": "faiss"}),
}


def short_texts() -> dict[str, Any]:
    spec, index = text_spec("word", ("bad", "good"), 16), torch.arange(2)
    return {"spec": spec, "raw": [{"tokens": encode_padded([SAID, "one"], spec), "label": index, "index": index}]}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGALRM")
@pytest.mark.parametrize("kind", FOREIGN)
def test_every_call_into_a_runtime_has_a_time_limit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof of an export runs the model in several ways; none of them is left out."""
    name, what, options = FOREIGN[kind]
    pytest.importorskip("onnxruntime")
    for package in options.values():
        pytest.importorskip(package)
    entry, calls = exports.get(name), []

    def limited(call: Any) -> Any:
        return lambda *given: (calls.append(call_limit._deadline is not None), call(*given))[1]

    def opened(*given: Any) -> Any:
        run = entry.meta["run"](*given)
        return dataclasses.replace(run, tower=limited(run.tower)) if hasattr(run, "tower") else limited(run)

    monkeypatch.setitem(exports._entries, name, dataclasses.replace(entry, meta={**entry.meta, "run": opened}))
    monkeypatch.setattr(call_limit, "_in_child", True)
    of_pytest = signal.setitimer(signal.ITIMER_REAL, 0)  # one limit at a time: see bounded()
    try:
        found = made(name, tmp_path, what(), options=options)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *of_pytest)
    assert found.passed and found.example and len(calls) > 10 and all(calls), found.failed
    assert (found.other_sizes or {}).get("inputs", 0) == (4 if name == "onnx" and found.other_sizes else 0)
    assert found.example["answer"] and (found.further or {}).get("search", "faiss") == "faiss"
