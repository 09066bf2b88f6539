"""Parts of a self-contained HTML page that reads on a phone, on paper, in light and in dark. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bigmodel_cli.core.addresses import scrub
from bigmodel_cli.core.errors import WRITTEN, printable
from bigmodel_cli.core.files import atomic_files

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --accent: #2563eb; --second: #dc2626;
  --muted: color-mix(in srgb, currentColor 65%, transparent) }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere }
h1 { line-height: 1.2; margin-bottom: .5rem } h2 { margin: 2.2rem 0 .6rem }
p.note, figcaption small, small { color: var(--muted) }
.tiles, .charts, .gallery { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)) }
.gallery:has(img:not(.small)) { grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)) }
.gallery:has(blockquote) { grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: .4rem 1.4rem }
.gallery blockquote { margin-bottom: .3rem; white-space: pre-line }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); align-items: start }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem }
.tile b { display: block; font-size: 1.35rem; line-height: 1.2 } .tile.first { background: var(--soft) }
figure { margin: 0; max-width: 640px; min-width: 0; break-inside: avoid } figcaption { font-weight: 600 }
figcaption small { font-weight: 400; display: block }
svg { width: 100%; height: auto; display: block } svg text { fill: currentColor; font-size: 12px }
.gallery img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: auto; background: var(--soft) }
.gallery img.small { image-rendering: pixelated }
.gallery figcaption { font-weight: 400; font-size: .85rem; line-height: 1.35 }
.scroll { overflow-x: auto; max-width: 100% } table { border-collapse: collapse }
td, th { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: normal }
td.text { min-width: 9rem; max-width: 30rem; overflow-wrap: anywhere } td.n, th.n { text-align: right }
.matrix td, .matrix th { padding: .15rem .35rem; text-align: right; font-size: .8rem; border: 1px solid var(--soft);
  white-space: nowrap } .matrix th { font-weight: 500; max-width: 8rem; overflow: hidden; text-overflow: ellipsis }
pre { border: 1px solid var(--line); padding: 1rem; overflow-x: auto; font-size: .85rem; max-width: 100% }
blockquote { margin: 0 0 .8rem; padding: .1rem 0 .1rem .8rem; border-left: 3px solid var(--line) }
.warning { border-left: 3px solid var(--second); padding-left: .8rem }
@media (max-width: 600px) { body { margin: 1rem auto; padding: 0 .8rem } h1 { font-size: 1.5rem } }
@media print { :root { color-scheme: light } .matrix td { print-color-adjust: exact }
  body { margin: 0; max-width: none; font-size: 10pt } .scroll, pre { overflow: visible }
  pre { white-space: pre-wrap } h2 { break-after: avoid } tr, .tile { break-inside: avoid } }
"""


@dataclass(frozen=True)
class Section:
    """A part of a page: a title, and HTML whose text is escaped already."""

    title: str
    body: str

    def html(self) -> str:
        return f"<section><h2>{escape(self.title)}</h2>{self.body}</section>"


def seen(page: str) -> str:
    """`page` with what cannot be seen escaped, such as a sign that turns the direction of text, as on the terminal."""
    return printable(page, keep=WRITTEN)


def document(title: str, body: str) -> str:
    """The whole page, under `title` as its heading."""
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>{body}</html>\n"
    )
    return seen(page)


def write(path: Path, title: str, parts: Iterable[str | Section]) -> None:
    """Write the page atomically.

    Raises:
        MachineError: the disk is full, or the folder cannot be written.
    """
    body = "".join(part.html() if isinstance(part, Section) else part for part in parts)
    atomic_files.write_text(path, scrub(document(title, body)))


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def tiles(figures: Sequence[tuple[str, str, str]]) -> str:
    """Large figures: name, value, and a line below; the first is emphasised."""
    cells = [
        f'<div class="tile{"" if i else " first"}">{escape(name)}'
        f"<b>{escape(value)}</b><small>{escape(below)}</small></div>"
        for i, (name, value, below) in enumerate(figures)
    ]
    return f'<div class="tiles">{"".join(cells)}</div>' if cells else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numeric: bool = False) -> str:
    """A table that scrolls sideways where it is too wide; with `numeric`, all columns but the first are numbers."""
    kinds = ["n" if numeric and i else "text" for i in range(1000)]
    head = "".join(f'<th class="{kinds[i]}">{escape(c)}</th>' for i, c in enumerate(columns))
    lines = (
        "<tr>" + "".join(f'<td class="{kinds[i]}">{escape(cell)}</td>' for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f'<div class="scroll"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def facts(values: Mapping[str, str]) -> str:
    """Two columns: names and values."""
    return table(("", ""), [(k, v) for k, v in values.items()])


def charts(drawn: Iterable[str]) -> str:
    """Charts beside each other, as many as fit."""
    inside = "".join(drawn)
    return f'<div class="charts">{inside}</div>' if inside else ""


def gallery(figures: Sequence[tuple[str, str]]) -> str:
    """Samples, each as HTML, and the text under it."""
    cells = (f"<figure>{view}<figcaption>{escape(caption)}</figcaption></figure>" for view, caption in figures)
    return f'<div class="gallery">{"".join(cells)}</div>'
