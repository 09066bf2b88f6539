"""Classes are compared by name; position says nothing."""

from __future__ import annotations

import pytest

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.insight.class_match import ClassMatch, match_classes
from bigmodel_cli.tasks.labelled import label_map


@pytest.mark.parametrize(
    ("model", "data", "missing", "unseen"),
    [
        (["cat", "dog", "owl"], ["cat", "dog", "owl"], [], []),
        (["cat", "dog", "owl"], ["owl", "cat", "dog"], [], []),
        (["cat", "dog", "owl"], ["cat", "owl"], ["dog"], []),
        (["cat", "dog"], ["ant", "cat", "dog", "yak"], [], ["ant", "yak"]),
        (["cat", "dog", "owl"], ["dog", "ant"], ["cat", "owl"], ["ant"]),
    ],
    ids=["same", "shuffled", "missing", "unseen", "both"],
)
def test_missing_and_unseen_by_name(model: list[str], data: list[str], missing: list[str], unseen: list[str]) -> None:
    assert match_classes(model, data) == ClassMatch(missing, unseen)


def test_nothing_in_common_is_an_input_error_that_shows_both() -> None:
    with pytest.raises(InputError) as caught:
        label_map(["cat", "dog"], ["0", "1"])
    assert caught.value.exit_code == 2 and caught.value.hint
    assert "cat, dog" in caught.value.line and "0, 1" in caught.value.line


def test_names_that_differ_by_case_are_different() -> None:
    assert match_classes(["Cat", "dog"], ["cat", "dog"]) == ClassMatch(["Cat"], ["cat"])
