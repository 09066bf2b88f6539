"""The classes that transformers' Auto classes build, read from the library's source without importing it.

An architecture ("bert") has at most one class for each task: ``BertForSequenceClassification`` for classes,
``BertLMHeadModel`` for language modelling.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

MASKED = "masked_language_modeling"
MAPPINGS = {
    MASKED: "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "language_modeling": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "text_classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "translation": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}
"""For each task, the table in transformers that lists a class for each architecture."""
PAIR = re.compile(r'\("([\w.-]+)", "(\w+)"\)')


def _library() -> Path | None:
    """The folder with the source of transformers' models; None if it is not installed."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "models"


@functools.cache
def classes_by_task() -> Mapping[str, Mapping[str, str]]:
    """Task -> architecture -> class; empty if transformers is not installed."""
    folder = _library()
    if folder is None:
        return {}
    source = (folder / "auto" / "modeling_auto.py").read_text(encoding="utf-8")
    found = {}
    for task, table in MAPPINGS.items():
        body = re.search(rf"^{table} = .*?^\)", source, re.M | re.S)
        found[task] = dict(PAIR.findall(body[0])) if body else {}
    return found


@functools.cache
def task_of_class() -> Mapping[str, str]:
    """Class -> task, for our own tasks."""
    found = classes_by_task().items()
    return {name: task for task, classes in found if task != MASKED for name in classes.values()}


def class_for(architecture: str, task: str) -> str | None:
    """The class of `architecture` (``model_type`` in its configuration) for `task`, if there is one.

    Masked language modelling, which none of our tasks is, tells an encoder from a decoder.
    """
    return classes_by_task().get(task, {}).get(architecture)


HEADS = {
    "text_classification": "classifier|score|classification_head|logits_proj|sequence_summary",
    "language_modeling": "lm_head|embed_out|cls|output_projection|pred_layer|lm_loss|head",
    "translation": "lm_head",
}
"""For each task, the attributes that hold the head, whose name differs by model."""
DEFAULT_HEADS = {"text_classification": "score", "language_modeling": "lm_head", "translation": "lm_head"}


@functools.cache
def head_attribute(name: str, task: str) -> str:
    """The attribute that holds the head of the class `name`, read from the class's source."""
    folder = _library()
    assert folder is not None
    for architecture in [a for a, c in classes_by_task()[task].items() if c == name]:
        for file in sorted(folder.glob(f"{architecture.replace('-', '_').removesuffix('_text')}*/modeling_*.py")):
            body = re.search(rf"^class {name}\(.*?(?=^class |\Z)", file.read_text(encoding="utf-8"), re.M | re.S)
            found = body and re.search(rf"self\.({HEADS[task]}) = ", body[0])
            if found:
                return found[1]
    return DEFAULT_HEADS[task]  # of the library's generic classes
