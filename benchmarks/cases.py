"""What each case of ../shared/cases gives now, as a table: `python benchmarks/cases.py > benchmarks/RESULTS-cases.md`.

The assertions are in tests/data/test_cases.py; cases of values and lengths have theirs beside what they are about.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.tables import table_suffix
from bigmodel_cli.core.readers.text_samples import read_texts
from bigmodel_cli.core.recipe import DataSection
from bigmodel_cli.core.registry import data
from bigmodel_cli.data.user_path import source_for
from bigmodel_cli.engine.build.data import train_and_val

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "cases"
IMAGES = (
    "sixteen-bit", "sixteen-bit-narrow-range/low16", "sixteen-bit-narrow-range/seals16", "training-testing",
    "seg-train", "grows/before", "holdout/classes", "holdout/one-class", "holdout/test-only", "thirty-three",
    "minor-class", "one-each", "passed-over", "pool",
)  # fmt: skip


def outcome(path: Path) -> str:
    """The splits with their sizes, and every note; or the error."""
    try:
        source = str(source_for(path))
        options = {"cache": "off"} if source == "image_folder" else {"tokenizer": "word"}
        bundle = data.get(source)(path.parent, path=str(path), **options)
        sizes = {name: len(load()) for name, load in bundle.load.items()}
        if bundle.problem is None and "val" not in sizes:
            train, val = train_and_val(bundle, DataSection(name=source))
            sizes |= {"train": len(train), "val": len(val)}
        text = ", ".join(f"{name} {n}" for name, n in sizes.items())
        text += f"; {len(bundle.spec.classes)} classes" if bundle.spec.classes else ""
        problem = [f"not for training ({bundle.problem.line})"] if bundle.problem else []
        return "; ".join([text, *bundle.notes, *problem])
    except InputError as error:
        return f"refused: {error.line}"


def rows() -> Iterator[tuple[str, str]]:
    for name in IMAGES:
        yield f"images/{name}", outcome(FOLDER / "images" / name)
    for path in sorted((FOLDER / "text").iterdir()):
        if table_suffix(path):
            yield f"text/{path.name}", outcome(path)
        else:
            yield f"text/{path.name}", f"{len(list(read_texts(path, 'text')))} lines for predict, empty ones kept"


def main() -> None:
    lines = [f"| {name} | {text.replace(str(FOLDER) + '/', '').replace('|', '/')} |" for name, text in rows()]
    head = ["# What the cases give", "", "Written by `benchmarks/cases.py`.", "", "| case | now |", "|---|---|"]
    sys.stdout.write("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
