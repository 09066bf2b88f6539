"""Compares what an export tells other programs of its preprocessing with the spec that bigmodel goes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from bigmodel_cli.core.preprocessing import STEPS, describe_image_steps
from bigmodel_cli.core.specs import ImageSpec, TextSpec
from bigmodel_cli.core.tokenizers.tokens import describe_tokenizer

LAYOUT = "NHWC uint8"
"""The ``layout`` of an export that has the preprocessing in its graph."""
WORDS = ("crop_square", "transparency", "orientation")
"""Steps that no value goes with: their words are for people. The first exports did not have them."""


def disagreement(
    spec: Any, stored: Mapping[str, Any], preprocess: Mapping[str, Any], in_graph: bool, fixed: bool
) -> str | None:
    """The first key of `preprocess` that contradicts `spec`, or is missing; None: they agree.

    Args:
        stored: the values that `spec` was made from.
        preprocess: the content of preprocess.json.
        in_graph: the export has the preprocessing in its graph,
        fixed: and takes images of one size.
    """
    found = {**preprocess, **preprocess.get("in_the_graph", {})}
    if in_graph != ("in_the_graph" in preprocess):
        return "in_the_graph"
    if in_graph and fixed != isinstance(found.get("size"), dict):
        return "size"
    expected: dict[str, Any] = {}
    if isinstance(spec, ImageSpec):
        steps = describe_image_steps(spec) | ({"layout": LAYOUT} if in_graph else {})
        if (more := next((key for key in STEPS if key in found and key not in steps), None)) is not None:
            return more
        expected = {key: value for key, value in steps.items() if key not in WORDS}
        names = {"outputs"}
    else:
        names = {field.name for field in fields(spec)}
        if isinstance(spec, TextSpec):
            expected = describe_tokenizer(spec)
    # As they were stored: a later version may add to a value that is kept as an object.
    expected |= {name: stored.get(name) for name in names & found.keys()}
    return next((key for key, value in expected.items() if found.get(key) != value), None)
