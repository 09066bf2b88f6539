"""``bigmodel data inspect`` for interactions of users with items."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.inspection.next_step import say_next

if TYPE_CHECKING:
    from bigmodel_cli.core.readers.text_samples import Reading
    from bigmodel_cli.core.types import DataBundle


def show_interactions(name: str, source: str, data_dir: Path | None, how: Reading | None, json: bool) -> None:
    """Print what is in the interactions `name`: density, long tail, repeats, ties, and leaks in time.

    Raises:
        InputError: a line cannot be read; the message names it.
    """
    from bigmodel_cli.core.recipe import data_root
    from bigmodel_cli.core.registry import data
    from bigmodel_cli.data.interactions.bundle import RATINGS
    from bigmodel_cli.insight.interactions import figures

    entry = data.get(source)
    options: dict[str, Any] = {}
    if source != name:
        options = {"path": str(Path(name).expanduser().absolute()), "split": "random", **(how.options() if how else {})}
    bundle: DataBundle = entry(data_root(data_dir), RATINGS, **options)
    facts = figures(bundle)
    notes = [note for note in bundle.notes if not note.startswith("random by user")]
    if json:
        console.print_json({"path": name, "read as": source, **facts, "notes": notes})
        return
    rows = [(key, _shown(value)) for key, value in facts.items()]
    console.show(console.table(f"interactions in {name}", ("", "value"), rows, right=True))
    for note in notes:
        console.note(note)
    say_next("train two-tower", name, how)


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2%}" if isinstance(value, float) else str(value)
