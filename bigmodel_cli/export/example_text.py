"""The parts of ``example.py`` that tokenize text, and the expected output. Shapes: T tokens, K classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigmodel_cli.core.framing import encode_beginning
from bigmodel_cli.core.registry import Entry, examples
from bigmodel_cli.core.tokens import encode_truncated, tokenizer
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
IDS = 'ids = {token: i for i, token in enumerate(steps["vocabulary"])}\n'
TOKENS = {
    "byte": "tokens = list(sys.argv[1].encode())\n",
    "char": IDS + 'tokens = [ids[c] if c in ids else ids["<unk>"] for c in sys.argv[1]]\n',
    "word": IDS
    + """\
special, unknown = ("<pad>", "<unk>", "<start>", "<end>"), ids["<unk>"]
tokens = [unknown if word in special else ids.get(word, unknown) for word in sys.argv[1].lower().split()]
""",
    "bpe": """\
known = Tokenizer.from_str(steps["vocabulary"][0])
known.no_padding()
known.no_truncation()
known.encode_special_tokens = True  # "<end>" in a text is ordinary text
found = known.encode(sys.argv[1], add_special_tokens=False)
""",
}
FRAMED = """\
found.truncate(max(steps["context"] - known.num_special_tokens_to_add(False), 0))
tokens = known.post_process(found, add_special_tokens=True).ids
"""
BEGUN = 'tokens = [*steps["conventions"]["before"], *found.ids]\n'
LABELS = 'labels = json.loads((here / "labels.json").read_text(encoding="utf-8"))\n'
NAMES = {
    "byte": '[f"{i:#04x}" for i in range(256)] + ["<end>"]',
    "char": 'steps["vocabulary"]',
    "word": 'steps["vocabulary"]',
    "bpe": "sorted(known.get_vocab(), key=known.get_vocab().get)",
}
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
    kind, classes = preprocess["tokenizer"], bool(task.spec.classes)
    bpe = ["tokenizers>=0.21"] if kind == "bpe" else []
    packages = ["Python 3.11", *(n for n in own.needs if "numpy" not in n), *bpe, "numpy"]
    imports = own.imports + ("\nfrom tokenizers import Tokenizer" if kind == "bpe" else "")
    head = HEAD.format(needs=", ".join(packages), standard="\n".join(STANDARD), imports=imports, start=START)
    parts = [head, LABELS if classes else "", "\n", TOKENS[kind]]
    if kind == "bpe":
        parts.append(FRAMED if classes else BEGUN if "conventions" in preprocess else "tokens = found.ids\n")
    names = "" if classes else f"labels = [json.dumps(name) for name in {NAMES[kind]}]\n"
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
