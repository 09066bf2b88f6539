"""A teacher is asked in its own tokens and about its own classes, whatever the student's are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import losses, methods, models, tasks
from bigmodel_cli.core.special_tokens import SPECIALS
from bigmodel_cli.core.types import SampleKey, Start, TextSpec

WORDS = ("good", "bad", "film", "dull")


def trained(name: str, spec: Any) -> Any:
    """A model with random weights and its task, as a checkpoint brings them back."""
    augment = lambda tokens, key: tokens  # noqa: E731
    entry = models.get(name)
    task = tasks.get(entry.meta["task"])(spec, losses.get("cross_entropy")(), augment)
    options = {"width": 8, "filters": 4} if name == "text-cnn" else {"layers": 1, "heads": 2, "width": 8}
    return SimpleNamespace(path="teacher.pt", model=entry(spec, **options).eval(), task=task)


def test_a_teacher_of_texts_is_asked_in_its_own_tokens() -> None:
    torch.manual_seed(0)
    theirs = TextSpec("word", (*SPECIALS, *reversed(WORDS)), 16, ("no", "yes"))
    ours = TextSpec("word", (*SPECIALS, *WORDS), 16, ("yes", "no"))
    teacher, student = trained("text-cnn", theirs), trained("text-cnn", ours)
    start = Start(student.model, "head", lambda path: teacher, student.task, ours)
    adapted = methods.get("distill")(start, teacher="teacher.pt")
    texts = ["good film", "bad dull film"]
    raw = student.task.encode_texts(texts)
    key = SampleKey(0, 0, raw["index"])
    assert adapted.objective is not None
    found = adapted.objective(student.task.for_data(ours)).prepare(raw, key)["teacher"]
    own = teacher.task.prepare(teacher.task.encode_texts(texts))
    torch.testing.assert_close(found, teacher.model(own["tokens"])[:, [1, 0]])


def test_a_teacher_of_another_task_is_refused() -> None:
    spec = TextSpec("word", (*SPECIALS, *WORDS), 16, ("no", "yes"))
    student, teacher = trained("text-cnn", spec), trained("gpt", spec)
    start = Start(student.model, "head", lambda path: teacher, student.task, spec)
    with pytest.raises(InputError, match=r"the teacher teacher\.pt is for language modeling; expected text classif"):
        methods.get("distill")(start, teacher="teacher.pt")
