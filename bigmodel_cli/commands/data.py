"""``bigmodel data``: the data sets there are, and ``data inspect``: what one's own images or shards hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.commands.inspect_text import show_text
from bigmodel_cli.commands.tokenize import show_shards, tokenize

if TYPE_CHECKING:
    from bigmodel_cli.insight.image_dataset import Findings

OWN = ("image_folder", "text_files", "labelled_file", "parallel_file", "chat_file", "preference_file", "token_shards")
MOST_CLASSES = 30  # rows of classes on a screen; --json has them all
MOST_NAMES = 5  # files named for each problem

app = typer.Typer(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
app.command()(tokenize)


@app.callback()
def data_command(context: typer.Context, data_dir: opt.DataDir = None, json: opt.Json = False) -> None:
    """The data sets, and which of them lie in the data folder; `inspect` looks into your own images or shards.

    `tokenize` makes token shards of a large text.

    Examples:

        bigmodel data

        bigmodel data --data-dir ~/datasets

        bigmodel data inspect ./photos --sheet sheet.png
    """
    if context.invoked_subcommand is not None:
        return
    from bigmodel_cli.commands.listing import here
    from bigmodel_cli.core.recipe import data_root
    from bigmodel_cli.core.registry import data

    root = data_root(data_dir)
    rows: list[dict[str, Any]] = [
        {"name": name, "here": here(name, root), "summary": found.summary} for name, found in sorted(data.found.items())
    ]
    if json:
        for row in rows:
            console.print_json(row)
        return
    own = dict.fromkeys(OWN, "wherever they lie")
    cells = [
        (r["name"], "yes" if r["here"] else own.get(r["name"], "downloaded when asked for"), r["summary"]) for r in rows
    ]
    console.show(console.table(f"data in {root}", ("name", "here", "what it is"), cells))


@app.command()
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Class folders, a table, a tar, text, shards, or hf:NAME: as --data.")
    ],
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="FILE.png", help="Also draw a contact sheet.")
    ] = None,
    json: opt.Json = False,
) -> None:
    """Look at images before training on them: counts, sizes, formats, leaks between splits, damaged files.

    Of text: how it is read, its splits, tokens and classes. Of token shards: whether every byte is what was written.

    Examples:

        bigmodel data inspect ./photos

        bigmodel data inspect ./photos --sheet sheet.png --json

        bigmodel data inspect ./shards
    """
    from bigmodel_cli.data.token_shards.files import is_shards

    if is_shards(Path(path)):
        show_shards(Path(path), json)
        return
    from bigmodel_cli.data.user_data.text_files import source_for

    text = source_for(Path(path))
    if text is not None:
        show_text(Path(path), text, json)
        return
    from bigmodel_cli.commands.progress import WaitBars
    from bigmodel_cli.data.user_data.image_discovery import list_images
    from bigmodel_cli.insight import image_dataset

    listing = list_images(path)
    with WaitBars():
        findings = image_dataset.inspect(listing)
    if sheet is not None:
        image_dataset.contact_sheet(listing, sheet)
    if json:
        console.print_json({"path": str(path), "sheet": str(sheet) if sheet else None, **findings.to_dict()})
        return
    _show(findings, path, sheet)


@app.command()
def index(
    shards: Annotated[str, typer.Argument(help="WebDataset tars: 'train-{000..099}.tar', 'part-*.tar'.")],
    out: Annotated[Path, typer.Option("--out", help="The index, beside or above the shards.")] = Path("index.json"),
) -> None:
    """Write the index that shards are streamed by, from a web server or a folder: counts, checksums, classes.

    Example:

        bigmodel data index 'shards/*.tar' --out shards/index.json

    Then, with that folder on any web server:  bigmodel train resnet18 --data https://host/shards/index.json
    """
    import json as text

    from bigmodel_cli.data.webdataset.index import expand_pattern
    from bigmodel_cli.data.webdataset.stream import make_index

    found = make_index(expand_pattern(shards), out)
    out.write_text(text.dumps(found), encoding="utf-8")
    count = sum(entry["nsamples"] for entry in found["shardlist"])
    console.say(f"{out}: {len(found['shardlist'])} shards, {count:,} samples, {len(found['classes'])} classes")


def _show(findings: Findings, path: str, sheet: Path | None) -> None:
    seen = findings.to_dict()
    splits = list(seen["images"])
    rows = [(name, *(f"{counts[s]:,}" for s in splits)) for name, counts in seen["counts"].items()]
    more = len(rows) - MOST_CLASSES
    rows = [*rows[:MOST_CLASSES], *([(f"and {more} more classes", *("" for _ in splits))] if more > 0 else [])]
    total = ("total", *(f"{n:,}" for n in seen["images"].values()))
    console.show(console.table(None, ("class", *splits), [*rows, total], right=True))
    side = seen["shorter_side"]
    facts = [
        ("formats", ", ".join(f"{k} {v:,}" for k, v in seen["formats"].items())),
        ("colours", ", ".join(f"{k} {v:,}" for k, v in seen["modes"].items())),
        ("shorter side", f"{side['min']} to {side['max']} pixels, median {side['median']:g}" if side else "-"),
        ("input size", f"--set data.size={seen['suggested_size']}"),
    ]
    problems = [
        ("cannot be decoded", [f"{b['name']} ({b['problem']})" for b in seen["undecodable"]]),
        ("same image in two splits", [" = ".join(p) for p in seen["leaks"]]),
        ("same image, two classes", [" = ".join(p) for p in seen["two_labels"]]),
        ("same image twice in a split", [" = ".join(p) for p in seen["duplicates"]]),
        ("look alike in two splits", [" ~ ".join(p) for p in seen["near_leaks"]]),
        ("look alike in a split", [" ~ ".join(p) for p in seen["near_duplicates"]]),
    ]
    for what, names in problems:
        shown = "".join(f"\n{name}" for name in names[:MOST_NAMES]) + ("\n..." if len(names) > MOST_NAMES else "")
        facts.append((what, f"{len(names):,}{shown}" if names else "none"))
    console.show(console.table(None, ("what", "found"), _lines(facts)))
    for note in seen["notes"]:
        console.note(note)
    if sheet is not None:
        console.say(f"contact sheet {sheet}")
    console.say(f"next: bigmodel train resnet18 --data {path} --set data.size={seen['suggested_size']}")


def _lines(facts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A row a line: a cell shows line breaks as escapes, since file names may hold them."""
    return [(what if i == 0 else "", line) for what, text in facts for i, line in enumerate(text.split("\n"))]
