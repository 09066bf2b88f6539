"""Class, folder and data names of any kind in MODEL_CARD.md and example.py: shown, never interpreted."""

from __future__ import annotations

import dataclasses
from html import escape
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from subjects import subject

from bigmodel_cli.core.errors import WRITTEN
from bigmodel_cli.core.markdown import code_block, code_span, markdown
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.export.proof import prove
from bigmodel_cli.insight.explanations import page as explained_page
from bigmodel_cli.insight.page import document, table

ODD = ("<script>x</script>", "[a](javascript:x)", "[b](http://x)", "a`b``c", "a|b", "line\nbreak", "**bold**",
       "$x$", "~~~\n# evil",
       "\u202eexe.gnp", "a\u200e\u200f\u061c\u200b\u2028\ufeff\u200c\u200d",
       "\x9b31m", "![i](http://x)", "&lt;", "<!--", "\x1b[31m", "http://x.example")  # fmt: skip


def tokens(text: str) -> list[Any]:
    flat = []
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text):
        flat += [token, *(token.children or [])]
    return flat


def shown(text: str) -> str:
    return "".join(t.content for t in tokens(text) if t.type in ("text", "text_special", "html_inline", "html_block"))


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_shown_as_it_is(name: str) -> None:
    found = tokens(f"- class: {markdown(name)}")
    kinds = {t.type for t in found} - {"inline", "text", "text_special", "paragraph_open", "paragraph_close"}
    assert kinds == {"bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close"}
    printed = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    assert shown(f"- class: {markdown(name)}") == f"class: {printed}"


@pytest.mark.parametrize("name", ODD)
def test_code_stays_code(name: str) -> None:
    assert [t.content.strip() for t in tokens(code_span(name)) if t.type == "code_inline"] == [
        "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    ]
    (block,) = (t for t in tokens(code_block(f"x: {name}\n```\n# no", "yaml")) if t.type != "inline")
    assert block.type == "fence" and name.rstrip() in block.content


@pytest.mark.parametrize("name", ODD)
def test_pages_show_names_as_they_are(name: str) -> None:
    """What cannot be seen, such as a sign that turns the direction of what follows it, is shown as an escape."""
    text = {"name": name, "answer": name, "shown": "", "tokens": [name], "weights": [1.0]}
    shown = "".join(c if c.isprintable() or c in WRITTEN else repr(c)[1:-1] for c in name)
    for page in (document(name, table([name], [[name]])), explained_page(name, [text])):
        assert page.count(escape(shown)) >= 3, "the heading, and more"
        assert all(c.isprintable() or c in WRITTEN for c in page)


def test_the_control_is_interpreted() -> None:
    """Negative control: unescaped, these names are HTML, links and headings."""
    assert {"html_inline", "link_open", "image", "strong_open"} <= {
        t.type for o in ODD for t in tokens(f"- class: {o}")
    }


def test_a_card_and_an_example_with_odd_names(tmp_path: Path) -> None:
    """A line break in a class name ended in a traceback, and HTML in one was HTML in the card."""
    pytest.importorskip("onnxruntime")
    drawn = subject("perceptron", ImageSpec(1, 4, 4, ODD, (0.5,), (0.25,)), (2,))
    recipe = {"model": {"name": "perceptron"}, "data": {"name": "<img src=x>", "path": "a/``` # b\n## c"}}
    what = dataclasses.replace(drawn, about={**drawn.about, "recipe": recipe, "data": {"<b>": "[x](y)"}})
    found = prove(what, "onnx", tmp_path / "out", seconds=0)
    assert found.passed and found.example and "\n" not in found.example["answer"], found.failed
    card = (tmp_path / "out/MODEL_CARD.md").read_text().partition("\n---\n")[2]
    kinds = {t.type for t in tokens(card)}
    assert not kinds & {"html_inline", "html_block", "link_open", "image", "strong_open", "s_open"}
    headings = [t.content for t in tokens(card) if t.type == "inline" and t.level == 1]
    assert len([h for h in headings if "evil" in h or h == "c"]) == 0
