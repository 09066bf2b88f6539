"""The parts of ``example.py`` that tokenize text, and the expected output. Shapes: T tokens, K classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigmodel_cli.core.registry import Entry, examples, tokenizers
from bigmodel_cli.core.tokenizers.framing import encode_beginning
from bigmodel_cli.core.tokenizers.kind import Program
from bigmodel_cli.core.tokenizers.tokens import encode_truncated, tokenizer
from bigmodel_cli.export.example import STANDARD, START, Example, answer_script
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.runtime import Runtime

if TYPE_CHECKING:
    from bigmodel_cli.export.subject import Subject

LONGEST = 200
"""Maximum characters of the test text, since it is a command-line argument."""
HEAD = '''\
"""Run this model on a text: python example.py TEXT. Needs {needs}."""

{standard}

import numpy as np
{imports}

here = Path(__file__).resolve().parent
if len(sys.argv) != 2:
    sys.exit(__doc__)
{start}
steps = json.loads((here / "preprocess.json").read_text(encoding="utf-8"))
'''
LABELS = 'labels = json.loads((here / "labels.json").read_text(encoding="utf-8"))\n'
FIRST = 'x = np.array([tokens[: steps["context"]] or [0]], np.int64)\n'
LAST = 'x = np.array([tokens[-steps["context"] :] or [0]], np.int64)\n'
NEXT = "\nlogits = logits[:, -1]  # of the token after the last\n"


@examples.register("text")
def text_example() -> Example:
    """The classes of a text, or the tokens that may come next."""
    return Example(_script, _samples, _expected)


def _script(own: Runtime, task: Any, preprocess: Mapping[str, Any]) -> str | None:
    """The program for a format; None for a task with several input texts."""
    if len(task.inputs) > 1:
        return None
    known: Program = tokenizers.get(preprocess["tokenizer"]).meta["program"]
    classes = bool(task.spec.classes)
    packages = ["Python 3.11", *(n for n in own.needs if "numpy" not in n), *known.needs, "numpy"]
    imports = own.imports + known.imports
    head = HEAD.format(needs=", ".join(packages), standard="\n".join(STANDARD), imports=imports, start=START)
    parts = [head, LABELS if classes else "", "\n", known.tokens, known.framed if classes else known.begun]
    names = "" if classes else f"labels = [json.dumps(name) for name in {known.names}]\n"
    return "".join(
        [*parts, FIRST if classes else LAST, names, "\n", own.run, "" if classes else NEXT, "\n", answer_script(task)]
    )


def _samples(subject: Subject, place: Path) -> list[str]:
    return [_sample(subject, place)]


def _sample(subject: Subject, place: Path) -> str:
    """A text of the data that can be a command-line argument."""
    text = tokenizer(subject.task.spec).decode(subject.prepared[0]["tokens"][0].tolist())
    return text.replace("\0", " ").encode(errors="ignore").decode()[:LONGEST] or " "


def _expected(entry: Entry, subject: Subject, run: Run, text: str) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The logits (1,K) of `text`, tokenized by bigmodel, and the K names."""
    spec = subject.task.spec
    if spec.classes:
        ids = encode_truncated(text, spec, framed=True)
        return torch.from_numpy(run(np.array([ids or [0]], np.int64))), spec.classes
    known = tokenizer(spec)
    ids = encode_beginning(text, spec)[-spec.context :]
    names = tuple(json.dumps(name) for name in known.tokens())
    return torch.from_numpy(run(np.array([ids or [0]], np.int64)))[:, -1], names
