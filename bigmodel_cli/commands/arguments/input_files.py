"""The files that ``predict`` and ``explain`` are given: by themselves, in a folder, or named in a table."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.columns import read_columns
from bigmodel_cli.core.readers.fasttext import without_labels
from bigmodel_cli.core.readers.text_files import AUTO, decode
from bigmodel_cli.core.readers.text_samples import AS_FOUND, MOST_CHARACTERS, Reading
from bigmodel_cli.core.registry import data

if TYPE_CHECKING:
    from bigmodel_cli.core.recipe import Recipe

STANDARD_INPUT = Path("-")
T = TypeVar("T")


def reading(columns: str | None, encoding: str | None, recipe: Recipe | None = None) -> Reading:
    """How files are read: as ``--columns`` and ``--encoding`` say, else as the training data of `recipe` was."""
    given = None if columns is None else read_columns(columns)
    if recipe is None:
        return Reading(given, encoding or AUTO)
    trained, source = recipe.data.options, data.found.get(recipe.data.name)
    whole = source is not None and bool(source.meta.get("whole_files"))
    encoding = encoding or trained.get("encoding") or AUTO
    return Reading(trained.get("columns") if given is None else given, encoding, whole, of_training=given is None)


def with_standard_input(files: list[Path], texts: list[str]) -> tuple[list[Path], str | None, Iterator[str]]:
    """`files` without ``-``, the first of `texts` and the others, with the lines of standard input if it was there.

    Empty lines are texts, too. They are read as they are asked for, so that there may be more than memory holds.

    Raises:
        InputError: nothing is piped into it. Asking for a line: it is too long, or not UTF-8.
    """
    if STANDARD_INPUT not in files:
        return files, next(given := iter(texts), None), given
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("-: nothing comes from standard input", "expected a pipe", 'or a text by --text "..."')
    given = itertools.chain(texts, without_labels(_lines(sys.stdin.buffer)))
    return [file for file in files if file != STANDARD_INPUT], next(given, None), given


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """The lines of `stream`, which is UTF-8."""
    offset, most = 0, 4 * MOST_CHARACTERS + 2  # bytes of a line
    for raw in iter(lambda: stream.readline(most + 1), b""):
        if len(raw) > most:
            raise InputError(f"standard input: a line of more than {most:,} bytes", "expected shorter lines")
        yield decode(raw, "utf-8", Path("standard input"), offset).removesuffix("\n")
        offset += len(raw)


def expand_inputs(
    paths: list[Path], kind: str, how: Reading = AS_FOUND, missing: list[InputError] | None = None
) -> list[Path]:
    """`paths`, with each folder replaced by the files in it, sorted, and a table of images by the images in it.

    `kind` is that of the model's inputs, "image" or "text". Files in a folder that are neither are counted in a note.
    What a table of images names and is not there is added to `missing`.

    Raises:
        InputError: a table of images cannot be read; or without `missing`, an image that it names is not there.
    """
    from bigmodel_cli.core.image.image_names import is_hidden
    from bigmodel_cli.core.image.images import describe_unused
    from bigmodel_cli.core.readers.tables import table_suffix

    files: list[Path] = []
    unused: Counter[str] = Counter()
    for path in paths:
        if kind == "image" and table_suffix(path) and path.is_file():
            files += _named_images(path, how, missing)
        elif path.is_dir():
            inside = [f for f in path.rglob("*") if f.is_file() and not any(map(is_hidden, f.relative_to(path).parts))]
            wanted = [f for f in inside if _fits(f, kind)]
            unused.update(f.suffix.lower() or "no suffix" for f in inside if not _fits(f, kind))
            files += sorted(wanted) or [path]
        else:
            files.append(path)
    if unused:
        console.note(describe_unused(unused))
    if kind == "text":
        _say_guesses(files, how)
    return files


def readable(
    files: Iterable[Path], read: Callable[[Path], Iterator[tuple[str, T]]], errors: list[InputError]
) -> Iterator[tuple[str, T]]:
    """The samples that `read` finds in each of `files`; why one cannot be read is added to `errors`."""
    for file in files:
        try:
            yield from read(file)
        except InputError as error:
            errors.append(error)


def _say_guesses(files: list[Path], how: Reading) -> None:
    """Say how the files are read where that is not evident, the first three notes with the number of the others."""
    from bigmodel_cli.core.readers.tables import table_suffix
    from bigmodel_cli.core.readers.text_samples import guesses

    role = "source" if "source" in (how.columns or {}) else "text"
    said: list[str] = []
    for file in files:
        with contextlib.suppress(InputError):  # reported where it is predicted
            said += guesses(file, role, how)
    for note in said[:3]:
        console.note(note)
    if len(said) > 3:
        console.note(f"and {len(said) - 3:,} more notes like these")
    if how.whole and not all(map(table_suffix, files)):
        console.note("each file is one text, as in training; a text for each line: bigmodel predict CKPT - < FILE")


def _fits(file: Path, kind: str) -> bool:
    from bigmodel_cli.core.image.images import image_suffixes
    from bigmodel_cli.core.readers.tables import table_suffix
    from bigmodel_cli.data.user_path import PLAIN_TEXT

    suffix = file.suffix.lower()
    return suffix in image_suffixes() if kind == "image" else suffix in PLAIN_TEXT or bool(table_suffix(file))


def _named_images(path: Path, how: Reading, missing: list[InputError] | None) -> list[Path]:
    from bigmodel_cli.core.image.image_names import ImageNames
    from bigmodel_cli.core.readers.tables import as_text
    from bigmodel_cli.core.readers.text_samples import open_for

    notes: list[str] = []
    table, names = open_for(path, ("image",), how, notes), ImageNames(path.parent)
    for note in notes:
        console.note(note)
    found: list[Path] = []
    for line, (name,) in table.rows("image"):
        where = table.located(line)
        try:
            found.append(Path(names.find(as_text(name, where, "image").strip(), where)))
        except InputError as error:
            if missing is None:
                raise
            missing.append(error)
    if not found and not missing:
        raise InputError(f"{path}: no rows", "expected an image in each")
    return found
