"""The files that ``predict`` and ``explain`` are given: by themselves, in a folder, or named in a table."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from pathlib import Path

from bigmodel_cli.commands.display import console
from bigmodel_cli.core.readers.text_samples import AS_FOUND, Reading

STANDARD_INPUT = Path("-")


def with_standard_input(files: list[Path], texts: list[str]) -> tuple[list[Path], list[str]]:
    """`files` without ``-``, and `texts` with the lines of standard input if it was there, empty ones too.

    Raises:
        InputError: the input is not UTF-8, or nothing is piped into it.
    """
    from bigmodel_cli.core.errors import InputError
    from bigmodel_cli.core.readers.text_files import decode

    if STANDARD_INPUT not in files:
        return files, texts
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("-: nothing comes from standard input", "expected a pipe", 'or a text by --text "..."')
    text = decode(sys.stdin.buffer.read(), "utf-8", Path("standard input"))
    lines = text.removesuffix("\n").split("\n") if text else []
    return [file for file in files if file != STANDARD_INPUT], [*texts, *lines]


def expand_inputs(paths: list[Path], kind: str, how: Reading = AS_FOUND) -> list[Path]:
    """`paths`, with each folder replaced by the files in it, sorted, and a table of images by the images in it.

    `kind` is that of the model's inputs, "image" or "text". Files in a folder that are neither are counted in a note.

    Raises:
        InputError: a table of images cannot be read, or names an image that is not there.
    """
    from bigmodel_cli.core.image.image_names import is_hidden
    from bigmodel_cli.core.image.images import describe_unused
    from bigmodel_cli.core.readers.tables import table_suffix

    files: list[Path] = []
    unused: Counter[str] = Counter()
    for path in paths:
        if kind == "image" and table_suffix(path) and path.is_file():
            files += _named_images(path, how)
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


def _say_guesses(files: list[Path], how: Reading) -> None:
    """Say what is guessed of the files, the first of each kind of guess with its number of files."""
    from bigmodel_cli.core.errors import InputError
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


def _fits(file: Path, kind: str) -> bool:
    from bigmodel_cli.core.image.images import image_suffixes
    from bigmodel_cli.core.readers.tables import table_suffix
    from bigmodel_cli.data.user_path import PLAIN_TEXT

    suffix = file.suffix.lower()
    return suffix in image_suffixes() if kind == "image" else suffix in PLAIN_TEXT or bool(table_suffix(file))


def _named_images(path: Path, how: Reading) -> list[Path]:
    from bigmodel_cli.core.image.image_names import ImageNames
    from bigmodel_cli.core.readers.tables import as_text, open_table

    table, names = open_table(path, ("image",), how.of("image"), how.encoding), ImageNames(path.parent)
    return [
        Path(names.find(as_text(name, table.located(line), "image").strip(), table.located(line)))
        for line, (name,) in table.rows("image")
    ]
