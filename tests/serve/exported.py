"""Export folders that take no training: brightness as a network, and words as one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.core.preprocessing import describe_image_steps
from bigmodel_cli.core.types import ImageSpec

SHADES = ("black", "dark", "grey", "light", "<b>white</b>")


def write_folder(folder: Path, model: Any, labels: tuple[str, ...], about: dict[str, Any], how: dict[str, Any]) -> Path:
    """The layout of ``bigmodel export``, with the ONNX `model` in it."""
    import onnx

    folder.mkdir(parents=True)
    onnx.checker.check_model(model, full_check=True)
    file = folder / "model.onnx"
    onnx.save(model, str(file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    plain = {"format": "onnx", "arch_args": {}, "recipe": {}, "with_preprocessing": False}
    for name, value in (
        ("export.json", {**plain, **about}),
        ("labels.json", list(labels)),
        ("preprocess.json", how),
        ("proof.json", {"files": {"model.onnx": digest}}),
    ):
        (folder / name).write_text(json.dumps(value))
    return folder


def shades(folder: Path, side: int = 16, plain: bool = False) -> Path:
    """An image's mean brightness m in 0..1 -> SHADES, each a fifth of the way; logits -80 (m - centre)^2.

    With `plain` it takes uint8 (B,H,W,C) images.
    """
    from onnx import TensorProto, helper, numpy_helper

    centres = numpy_helper.from_array(np.array([0, 0.25, 0.5, 0.75, 1], np.float32), "centres")
    sharp = numpy_helper.from_array(np.array(-80, np.float32), "sharp")
    prepared = [
        helper.make_node("Cast", ["input"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["first", "most"], ["scaled"]),
    ]
    nodes = [
        *(prepared if plain else []),
        helper.make_node("GlobalAveragePool", ["scaled" if plain else "input"], ["mean4"]),
        helper.make_node("Flatten", ["mean4"], ["mean"]),
        helper.make_node("Sub", ["mean", "centres"], ["off"]),
        helper.make_node("Mul", ["off", "off"], ["square"]),
        helper.make_node("Mul", ["square", "sharp"], ["logits"]),
    ]
    most = numpy_helper.from_array(np.array(255, np.float32), "most")
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, side, side])
    if plain:
        given = helper.make_tensor_value_info("input", TensorProto.UINT8, ["batch", "height", "width", 1])
    answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(SHADES)])
    graph = helper.make_graph(nodes, "shades", [given], [answer], [centres, sharp, *([most] if plain else [])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    spec = {"kind": "image", "channels": 1, "height": side, "width": side, "classes": SHADES, "mean": [0.0], "std": [1]}
    steps = describe_image_steps(ImageSpec(1, side, side, SHADES, (0.0,), (1.0,)))
    about = {"arch": "shades", "task": "image_classification", "input": spec, "with_preprocessing": plain}
    if plain:
        steps = {"mode": "L", "size": "any", "layout": "NHWC uint8", "in_the_graph": {**steps, "layout": "NHWC uint8"}}
    return write_folder(folder, model, SHADES, about, steps)


def words(folder: Path) -> Path:
    """A text of known words -> (sad, glad), by how many of each it holds."""
    from onnx import TensorProto, helper, numpy_helper

    vocabulary = ("<pad>", "<unk>", "<start>", "<end>", "good", "fine", "bad", "dull")
    weights = np.zeros((len(vocabulary), 2), np.float32)
    weights[4:6, 1] = weights[6:8, 0] = 2
    nodes = [
        helper.make_node("Gather", ["weights", "tokens"], ["each"]),
        helper.make_node("ReduceSum", ["each", "axis"], ["logits"], keepdims=0),
    ]
    given = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"])
    answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1]), "axis")]
    graph = helper.make_graph(nodes, "words", [given], [answer], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    spec = {"kind": "text", "tokenizer": "word", "vocabulary": vocabulary, "context": 16, "classes": ("sad", "glad")}
    about = {"arch": "words", "task": "text_classification", "input": spec}
    how = {"tokenizer": "word", "vocabulary": vocabulary, "context": 16}
    return write_folder(folder, model, ("sad", "glad"), about, how)


if __name__ == "__main__":
    import sys

    {"shades": shades, "words": words}[sys.argv[1]](Path(sys.argv[2]))
