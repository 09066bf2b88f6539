"""What a file says reaches the terminal as text: no colour, no title, no line of its own making."""

from __future__ import annotations

import io
import os
import pty
import sys
import tty
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from bigmodel_cli.commands import recipe
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.progress import WaitBars
from bigmodel_cli.commands.generate import Output
from bigmodel_cli.core.errors import InputError, printable

EVIL = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "a\r\nerror: b",
    "\u202egnp.exe",
    "\x9b2J",
    "[bold]x[/bold]",
    "[/]",
    "\udcff",
]


def drawn(monkeypatch: pytest.MonkeyPatch, draw: object) -> str:
    """What `draw` writes on both streams, as a terminal with colours would get it."""
    buffer = io.StringIO()
    for name in ("out", "err"):
        monkeypatch.setattr(console, name, Console(file=buffer, width=200, color_system=None, force_terminal=False))
    draw()  # type: ignore[operator]
    return buffer.getvalue()


@pytest.mark.parametrize("evil", EVIL, ids=ascii)
def test_shown_as_it_is_written(evil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {
        "say": lambda: console.say(evil),
        "note": lambda: console.note(evil),
        "error": lambda: console.error(InputError(evil, evil, evil)),
        "cell": lambda: console.show(console.table(None, ("what",), [(evil,)])),
        "head": lambda: console.show(console.table(None, (evil,), [("x",)])),
        "title": lambda: console.show(console.table(evil, ("what",), [("x",)])),
    }
    for name, draw in ways.items():
        text = drawn(monkeypatch, draw)
        # A title is folded to the width of its table: blanks do not count.
        assert "".join(printable(evil).split()) in "".join(text.split()), name
        assert all(c.isprintable() or c == "\n" for c in text), name


@pytest.mark.parametrize("evil", EVIL, ids=ascii)
def test_the_name_of_what_is_waited_for(evil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar is drawn with markup and colours of its own; the name of a shard in an index is anybody's."""
    monkeypatch.setenv("TERM", "xterm")
    buffer = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=buffer, width=200, color_system=None, force_terminal=True))
    with WaitBars() as bars:
        bars.on_download(evil, 1, 2)
        bars.on_download(evil, 2, 2)
    assert f"downloading {printable(evil)}" in buffer.getvalue()
    assert evil.isprintable() or evil not in buffer.getvalue()


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], object]) -> str:
    """What `draw` writes on stdout, where that is a terminal."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)  # else a line break arrives as two characters
    with (
        os.fdopen(theirs, "w", encoding="utf-8", errors="backslashreplace") as terminal,
        monkeypatch.context() as patched,
    ):
        patched.setattr(sys, "stdout", terminal)
        draw()
        terminal.write("\0")
        terminal.flush()
        seen = b""
        while not seen.endswith(b"\0"):
            seen += os.read(ours, 1 << 16)
    os.close(ours)
    return seen[:-1].decode()


@pytest.mark.parametrize("evil", EVIL, ids=ascii)
@pytest.mark.parametrize("stream", [True, False])
def test_generated_text(evil: str, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of a vocabulary are anybody's. A pipe gets them as they are."""

    def generated() -> None:
        output = Output(["Once\tupon\n"], stream)
        output.collect(iter([[evil]]))
        output.show([""], json=False)

    shown = "".join(c if c == "\n" else printable(c) for c in evil)
    assert on_a_terminal(monkeypatch, generated) == f"Once\tupon\n{shown}\n"
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    generated()
    assert sys.stdout.getvalue() == f"Once\tupon\n{evil}\n"  # type: ignore[attr-defined]


def test_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("model: {name: mlp}\ndata: {name: image_folder, path: a\u202egnp}\n", encoding="utf-8")
    assert "path: a\\u202egnp\n" in on_a_terminal(monkeypatch, lambda: recipe.show(str(file)))


def test_what_nothing_guards_is_interpreted() -> None:
    buffer = io.StringIO()
    Console(file=buffer, width=200, force_terminal=True, color_system="standard").print("[bold]x[/bold]")
    assert "[bold]" not in buffer.getvalue() and "\x1b" in buffer.getvalue()
