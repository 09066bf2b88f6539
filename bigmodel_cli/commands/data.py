"""``bigmodel data``: list the data sets; inspect, tokenize and index your own data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.arguments.input_files import reading
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.option_tables import show_component
from bigmodel_cli.commands.display.pages import require_place
from bigmodel_cli.commands.inspection.interactions import show_interactions
from bigmodel_cli.commands.inspection.next_step import say_next
from bigmodel_cli.commands.inspection.text import show_text
from bigmodel_cli.commands.tokenize import show_shards, tokenize
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from bigmodel_cli.core.readers.text_samples import Reading
    from bigmodel_cli.insight.image_dataset import Findings

MAX_CLASSES = 30  # rows of classes in the table; --json lists them all
MAX_NAMES = 5  # files listed for each problem

app = typer.Typer(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
app.command()(tokenize)


@app.callback()
@commands.register("data", order=180, app=app)
def data_command(context: typer.Context, data_dir: opt.DataDir = None, json: opt.Json = False) -> None:
    """List the data sets; inspect, tokenize or index your own data.

    Examples:

        bigmodel data

        bigmodel data --data-dir ~/datasets

        bigmodel data inspect ./photos --sheet sheet.png
    """
    if context.invoked_subcommand is not None:
        return
    from bigmodel_cli.core.recipe import data_root
    from bigmodel_cli.core.registry import data
    from bigmodel_cli.data.presence import is_present

    root = data_root(data_dir)
    rows: list[dict[str, Any]] = [
        {"name": name, "here": is_present(name, root), "summary": found.summary}
        for name, found in sorted(data.found.items())
    ]
    if json:
        for row in rows:
            console.print_json(row)
        return
    own = {name: "your own files" for name, found in data.found.items() if "reads" in found.meta}
    cells = [
        (r["name"], "yes" if r["here"] else own.get(r["name"], "downloaded on first use"), r["summary"]) for r in rows
    ]
    console.show(console.table(f"data in {root}", ("name", "available", "description"), cells))


@app.command("options")
def data_options(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A data set of `bigmodel data`.")], json: opt.Json = False
) -> None:
    """List the options of a data set, with defaults.

    Example:

        bigmodel data options image_folder
    """
    from bigmodel_cli.core.registry import data

    show_component(data, name, "data", json)


@app.command()
def sample(
    file: Annotated[Path, typer.Argument(metavar="FILE.png", help="The picture to write.")],
    name: Annotated[str, typer.Option("--data", metavar="NAME", help="A data set of images.")] = "digits",
    index: Annotated[int, typer.Option("--index", metavar="N", min=0, help="Which image of the test split.")] = 0,
    data_dir: opt.DataDir = None,
) -> None:
    """Write one image of a data set's test split as a picture, to predict on.

    Example:

        bigmodel data sample digit.png
    """
    from bigmodel_cli.engine.build.image_sample import image_sample, write_picture

    require_place(file)
    picture, label = image_sample(name, index, data_dir)
    write_picture(picture, file)
    console.say(f"{file}: a {label} ({name}, test split, image {index})")
    console.say(f"next: bigmodel predict RUN {file}")


@app.command()
def inspect(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="What --data accepts: class folders, a table, a tar, text, token shards, hf:NAME."
        ),
    ],
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="FILE.png", help="Write a contact sheet of images.")
    ] = None,
    columns: opt.Columns = None,
    encoding: opt.Encoding = None,
    task: Annotated[str | None, typer.Option("--task", metavar="NAME", help=opt.TASK_HELP)] = None,
    data_dir: opt.DataDir = None,
    json: opt.Json = False,
) -> None:
    """Inspect your own data before training: counts, sizes, leaks between splits, damaged files.

    For text: the format it is read as, its splits, tokens and classes. For token shards: every checksum.
    For interactions: density, long tail, repeats, ties, and leaks in time.

    Examples:

        bigmodel data inspect ./photos

        bigmodel data inspect ./photos --sheet sheet.png --json

        bigmodel data inspect ./shards

        bigmodel data inspect movielens-100k
    """
    if task is not None:
        _inspect_targets(path, task, reading(columns, encoding), sheet, json)
        return
    _inspect(path, sheet, columns, encoding, data_dir, json)


def _inspect_targets(path: str, task: str, how: Reading, sheet: Path | None, json: bool) -> None:
    from bigmodel_cli.commands.inspection.targets import show_targets
    from bigmodel_cli.data.targets import named_task
    from bigmodel_cli.data.user_path import source_for

    source = source_for(path, how.columns, named_task(task))
    if source is None or not Path(path).expanduser().exists():
        raise InputError(f"{path}: nothing that is read for --task {task}", "expected a table, or folders of images")
    if sheet is not None:
        raise InputError(f"{path}: --sheet", "expected images with one class each", "leave --sheet out")
    show_targets(path, source, task, how, json)


def _inspect(
    path: str, sheet: Path | None, columns: str | None, encoding: str | None, data_dir: Path | None, json: bool
) -> None:
    from bigmodel_cli.data.token_shards.files import is_shards

    if is_shards(Path(path)):
        _check_for_images(path, sheet, columns, encoding)
        show_shards(Path(path), json)
        return
    from bigmodel_cli.core.registry import data, tasks
    from bigmodel_cli.data.user_path import source_for

    if path in data.found and data.found[path].meta.get("kind") == "interactions":
        _check_for_images(path, sheet, columns, encoding)
        show_interactions(path, path, data_dir, None, json)
        return
    how = reading(columns, encoding)
    source = source_for(path, how.columns)
    task = data.get(source).meta.get("task") if source else None
    if source and task and tasks.get(task).meta["spec_type"].kind == "text":
        _check_for_images(path, sheet)
        show_text(Path(path), source, how, json)
        return
    if source and data.get(source).meta.get("kind") == "interactions":
        _check_for_images(path, sheet)
        show_interactions(path, source, data_dir, how, json)
        return
    _inspect_images(path, how, sheet, json)


def _check_for_images(path: str, sheet: Path | None, columns: str | None = None, encoding: str | None = None) -> None:
    """Refuse flags that are not for what `path` holds.

    Raises:
        InputError: they are given.
    """
    for flag, given, of in (
        ("--sheet", sheet, "images"), ("--columns", columns, "a table"), ("--encoding", encoding, "texts or a table")
    ):  # fmt: skip
        if given is not None:
            raise InputError(f"{path}: {flag}", f"expected {of}", f"leave {flag} out")


def _inspect_images(path: str, how: Reading, sheet: Path | None, json: bool) -> None:
    from bigmodel_cli.commands.display.progress import WaitBars
    from bigmodel_cli.data.user_data.image_discovery import list_images
    from bigmodel_cli.insight import image_dataset

    with WaitBars():
        listing = list_images(path, how.columns, encoding=how.encoding)
        findings = image_dataset.inspect(listing)
    if sheet is not None:
        image_dataset.contact_sheet(listing, sheet)
    if json:
        console.print_json({"path": str(path), "sheet": str(sheet) if sheet else None, **findings.to_dict()})
    else:
        _show(findings, path, how, sheet)
    listing.check_trainable()


@app.command()
def index(
    shards: Annotated[
        str, typer.Argument(metavar="SHARDS", help="WebDataset tars: 'train-{000..099}.tar', 'part-*.tar'.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Index to write, beside or above the shards.")
    ] = Path("index.json"),
) -> None:
    """Write the index from which WebDataset shards are streamed: counts, checksums, classes.

    Example:

        bigmodel data index 'shards/*.tar' --out shards/index.json

    Then, with that folder on a web server:

        bigmodel train resnet18 --data https://host/shards/index.json
    """
    import json as text

    from bigmodel_cli.data.webdataset.index import expand_pattern
    from bigmodel_cli.data.webdataset.stream import make_index

    require_place(out)
    notes: list[str] = []
    found = make_index(expand_pattern(shards), out, notes)
    for line in notes:
        console.note(line)
    atomic_files.write_text(out, text.dumps(found))
    count = sum(entry["nsamples"] for entry in found["shardlist"])
    console.say(f"{out}: {len(found['shardlist'])} shards, {count:,} samples, {len(found['classes'])} classes")


def _show(findings: Findings, path: str, how: Reading, sheet: Path | None) -> None:
    values = findings.to_dict()
    splits = list(values["images"])
    rows = [(name, *(f"{counts[s]:,}" for s in splits)) for name, counts in values["counts"].items()]
    more = len(rows) - MAX_CLASSES
    rows = [*rows[:MAX_CLASSES], *([(f"and {more} more classes", *("" for _ in splits))] if more > 0 else [])]
    total = ("total", *(f"{n:,}" for n in values["images"].values()))
    console.show(console.table(None, ("class", *splits), [*rows, total], right=True))
    side = values["shorter_side"]
    facts = [
        ("formats", ", ".join(f"{k} {v:,}" for k, v in values["formats"].items())),
        ("color modes", ", ".join(f"{k} {v:,}" for k, v in values["modes"].items())),
        ("shorter side", f"{side['min']} to {side['max']} pixels, median {side['median']:g}" if side else "-"),
        ("input size", f"--set data.size={values['suggested_size']}"),
    ]
    problems = [
        ("cannot be decoded", [f"{b['name']} ({b['problem']})" for b in values["undecodable"]]),
        ("same image in two splits", [" = ".join(p) for p in values["leaks"]]),
        ("same image in two classes", [" = ".join(p) for p in values["two_labels"]]),
        ("same image twice in a split", [" = ".join(p) for p in values["duplicates"]]),
        ("near-duplicates in two splits", [" ~ ".join(p) for p in values["near_leaks"]]),
        ("near-duplicates in a split", [" ~ ".join(p) for p in values["near_duplicates"]]),
    ]
    for what, names in problems:
        shown = "".join(f"\n{name}" for name in names[:MAX_NAMES]) + ("\n..." if len(names) > MAX_NAMES else "")
        facts.append((what, f"{len(names):,}{shown}" if names else "none"))
    console.show(console.table(None, ("", "found"), _lines(facts)))
    for note in values["notes"]:
        console.note(note)
    if sheet is not None:
        console.say(f"contact sheet: {sheet}")
    if findings.listing.problem is None:
        say_next("train resnet18", path, how, "--set", f"data.size={values['suggested_size']}")


def _lines(facts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """One row per line, since a cell shows line breaks, which file names may hold, as escapes."""
    return [(what if i == 0 else "", line) for what, text in facts for i, line in enumerate(text.split("\n"))]
