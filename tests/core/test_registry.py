"""A registry of a package made for the test: what it finds without an import, families, near names, and schemas."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import Registry, natural

FILES = {
    "things_of_test.py": """
        from bigmodel_cli.core.registry import Registry
        things = Registry("thing", "things", "parts_of_test")
    """,
    "parts_of_test/__init__.py": "",
    "parts_of_test/simple.py": '''
        import functools
        from typing import Annotated
        from pydantic import Field
        from things_of_test import things

        def other(function): return function

        class NotAFunction:
            """Nor registered."""

        @other
        @things.register()
        def net20(given, *, width: Annotated[int, Field(gt=0)] = 4, names: tuple[str, ...] = (), rate: float):
            """The first line.

            And more.
            """
            return given, width, names, rate

        @things.register("net8", depth=8, kind="small")
        @things.register("net101", depth=101)
        def family(given, depth, *, flag: bool = False):
            """Of two depths."""
            return given, depth, flag

        @functools.cache
        def unregistered(): ...

        @functools.lru_cache(maxsize=2)
        def nor_this(): ...
    ''',
    "parts_of_test/deep/__init__.py": "",
    "parts_of_test/deep/zoo.py": '''
        from things_of_test import things
        CALLS = []

        def described(member):
            CALLS.append(member)
            return {"long": len(member)}

        @things.register("far:*", members=lambda: ["net9", "bird2", "bird10"], describe=described)
        def far(given, member, *, wide: bool = False):
            """Elsewhere."""
            return given, member, wide

        @things.register("gone:*", members=lambda: [], describe=lambda m: {})
        def gone(given, member):
            """A library that is not installed."""
    ''',
}  # fmt: skip


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    for name, source in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("things_of_test").things
    for name in [m for m in sys.modules if m.startswith(("things_of_test", "parts_of_test"))]:
        del sys.modules[name]


def test_names_come_from_the_source_without_an_import(things: Registry) -> None:
    assert things.names() == ["net8", "net20", "net101"] and things.families() == ["far", "gone"]
    assert set(things.found) == {"net8", "net20", "net101", "far:*", "gone:*"}
    assert things.found["net20"].summary == "The first line." and things.found["net8"].module == "parts_of_test.simple"
    assert things.found["far:*"].module == "parts_of_test.deep.zoo"
    assert not [name for name in sys.modules if name.startswith("parts_of_test.")]
    things.get("net8")
    assert "parts_of_test.simple" in sys.modules and "parts_of_test.deep.zoo" not in sys.modules


def test_numbers_count_as_numbers() -> None:
    assert sorted(["b10a", "b9", "b10", "a100", "b", "10", "9", "b1-2"], key=natural) == [
        "9", "10", "a100", "b", "b1-2", "b9", "b10", "b10a",
    ]  # fmt: skip


def test_a_component_is_its_function_with_what_was_fixed(things: Registry) -> None:
    entry = things.get("net20")
    assert (entry.name, entry.kind, entry.meta) == ("net20", "thing", {})
    assert entry("x", width=1, names=("a",), rate=2.0) == ("x", 1, ("a",), 2.0)
    assert things.get("net8").meta == {"depth": 8, "kind": "small"} and things.get("net101").meta == {"depth": 101}
    assert things.get("net8")("x") == ("x", 8, False) and things.get("net101")("x", flag=True) == ("x", 101, True)


def test_options_are_typed_completed_and_closed(things: Registry) -> None:
    options = things.get("net20").options({"rate": "1e-3", "names": ["a", "b"]}, "thing")
    assert options == {"width": 4, "names": ("a", "b"), "rate": 0.001} and type(options["rate"]) is float
    for raw, where in [({}, "rate"), ({"rate": 1, "wdith": 3}, "wdith"), ({"rate": 1, "width": 0}, "width")]:
        with pytest.raises(ValidationError) as caught:
            things.get("net20").options(raw, "thing")
        assert [error["loc"][0] for error in caught.value.errors()] == [where]
    made = things.get("net20").schema(rate=1)
    with pytest.raises(ValidationError):
        made.rate = 3  # type: ignore[attr-defined]  # what was checked stays as it was


def test_families(things: Registry) -> None:
    assert things.members("far") == ["far:bird2", "far:bird10", "far:net9"] and things.members("gone") == []
    entry = things.get("far:bird2")
    assert entry.name == "far:bird2" and entry.meta["member"] == "bird2" and entry.meta["long"] == 5
    assert entry("x", wide=True) == ("x", "bird2", True)
    assert things.get("far:bird2") is entry and things.get("far:bird2.tag").meta["member"] == "bird2.tag"
    assert sys.modules["parts_of_test.deep.zoo"].CALLS == ["bird2", "bird2.tag"]
    assert things.get("gone:any").meta["member"] == "any"  # without its library nobody can say that there is none


def test_what_matches(things: Registry) -> None:
    assert things.matching("net") == ["net8", "net20", "net101", "far:net9"]
    assert things.matching("net", start=True) == ["net8", "net20", "net101"]
    assert things.matching("far:b", start=True) == ["far:bird2", "far:bird10"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("net21", "net20"),
        ("net9", "far:net9"),
        ("far:bird3", "bird2"),
        ("near:bird2", None),
        ("far:", None),
        ("", None),
    ],
)
def test_an_unknown_name_is_bad_input_and_a_near_one_is_named(name: str, near: str | None, things: Registry) -> None:
    with pytest.raises(InputError) as caught:
        things.get(name)
    error: Any = caught.value
    assert error.exit_code == 2 and repr(name) in error.what and "thing" in error.what
    assert near is None or near in error.expected
    assert error.hint == (
        f"bigmodel models --search {name[4:]}"
        if name.startswith("far:")
        else "bigmodel recipe fields; for a plug-in: --import FILE.py"
    )


def test_a_name_that_stands_twice_in_the_source_is_an_error(things: Registry, tmp_path: Path) -> None:
    (tmp_path / "parts_of_test/again.py").write_text(
        "from things_of_test import things\n@things.register('net8')\ndef more(): ...\n"
    )
    with pytest.raises(ValueError, match="net8"):
        _ = things.found


def test_a_module_may_be_read_again_and_a_program_may_add_its_own(things: Registry) -> None:
    importlib.reload(importlib.import_module("parts_of_test.simple"))
    things.register("mine", answer=42)(lambda given: given)
    assert things.get("mine").meta == {"answer": 42} and things.get("mine")(7) == 7
    assert "mine" in things.names()


def test_each_kind_tells_where_it_is_listed() -> None:
    from bigmodel_cli.core import registry as registries

    for registry, listing in (
        (registries.models, "models"),
        (registries.data, "data"),
        (registries.losses, "losses"),
        (registries.examples, "recipe fields"),
    ):
        with pytest.raises(InputError) as caught:
            registry.get("no-such-thing-anywhere")
        assert caught.value.hint == f"bigmodel {listing}; for a plug-in: --import FILE.py"
