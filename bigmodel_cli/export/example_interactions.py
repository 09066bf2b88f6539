"""The parts of ``example.py`` that recommend items or rate one, and the expected output.

Shapes: S items of a user, I items.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigmodel_cli.core.interactions import InteractionSpec
from bigmodel_cli.core.registry import Entry, examples
from bigmodel_cli.export.example import STANDARD, START, Example, answer_script
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.runtime import Runtime

if TYPE_CHECKING:
    from bigmodel_cli.export.subject import Subject

SEPARATOR = ","
"""Between the items of an argument; an id with it in it can only be given alone."""
HEAD = '''\
"""{what}. Needs {needs}."""

{standard}

import numpy as np
{imports}

here = Path(__file__).resolve().parent
if len(sys.argv) != 2:
    sys.exit(__doc__)
{start}
about = json.loads((here / "export.json").read_text(encoding="utf-8"))["input"]
steps = json.loads((here / "preprocess.json").read_text(encoding="utf-8"))
ids = about["item_ids"] or [str(i) for i in range(about["items"])]
labels = [f"{{i}}  {{title}}" for i, title in zip(ids, about["titles"] or ids)]
place = {{name: i for i, name in enumerate(ids)}}
names = [sys.argv[1]] if sys.argv[1] in place else sys.argv[1].split(",")
try:
    given = [place[name] for name in names if name]
except KeyError as error:
    sys.exit(f"no item {{error}}")
{check}'''
ONE_ITEM = """\
if len(given) != 1:
    sys.exit(f"{len(given)} items: expected one")
"""
RANK = """\
x = [np.zeros(1, np.int64), np.array([[i + 1 for i in given] or [0]], np.int64)]  # items are numbered from 1

{run}
scores = np.asarray(logits[0], np.float64)
scores[given] = -np.inf  # what was seen is not recommended

"""
RATE = """\
item = given[0]
x = [np.zeros(1, np.int64), np.array([item], np.int64)]  # the first user

{run}

"""
FEED = "{session.get_inputs()[0].name: x}"
"""How the formats' lines give one input; two are given by their order."""


@examples.register("interactions")
def interactions_example() -> Example:
    """The items to recommend after a history, or the rating of an item."""
    return Example(_script, _arguments, _expected)


def _script(own: Runtime, task: Any, preprocess: Mapping[str, Any]) -> str | None:
    """The program for a format; None for one that cannot take two inputs as onnxruntime does."""
    run = own.run.replace(FEED, "dict(zip([given.name for given in session.get_inputs()], x))")
    if "zip(" not in run:
        return None
    ranks = "history" in task.inputs
    what = "Recommend items after those seen, oldest first: python example.py ITEM,ITEM,..."
    packages = ["Python 3.11", *own.needs, "numpy"]
    head = HEAD.format(
        what=what if ranks else "The rating of an item by the first user: python example.py ITEM",
        needs=", ".join(packages), standard="\n".join(STANDARD), imports=own.imports, start=START,
        check="" if ranks else ONE_ITEM,
    )  # fmt: skip
    return head + (RANK if ranks else RATE).format(run=run) + answer_script(task)


def _arguments(subject: Subject, place: Path) -> list[str]:
    """The latest items of a user of the data."""
    spec, batch = subject.task.spec, subject.prepared[0]
    assert isinstance(spec, InteractionSpec)
    if "history" not in subject.task.inputs:
        return [spec.item_id(int(batch["item"][0]))]
    seen = [spec.item_id(i - 1) for i in batch["history"][0].tolist() if i]
    return [SEPARATOR.join([name for name in seen if SEPARATOR not in name][-20:])]


def _items(argument: str, spec: InteractionSpec) -> list[str]:
    """The ids in an argument of the program."""
    return [argument] if argument in spec.item_ids else argument.split(SEPARATOR)


def _expected(entry: Entry, subject: Subject, run: Run, argument: str) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The scores (1,I) after the items of `argument`, or a rating (1,I), the same for each; and the names."""
    spec = subject.task.spec
    assert isinstance(spec, InteractionSpec)
    names = tuple(f"{spec.item_id(i)}  {spec.title(i)}" for i in range(spec.items))
    given = [spec.item_index(name) for name in _items(argument, spec) if name]
    user = np.zeros(1, np.int64)
    if "history" not in subject.task.inputs:
        return torch.from_numpy(run(user, np.array(given[:1], np.int64))).expand(spec.items)[None], names
    return torch.from_numpy(run(user, np.array([[i + 1 for i in given] or [0]], np.int64))), names
