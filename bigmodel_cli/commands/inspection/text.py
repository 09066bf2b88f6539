"""``bigmodel data inspect`` for text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.inspection.doubts import doubts
from bigmodel_cli.commands.inspection.next_step import say_next

if TYPE_CHECKING:
    from bigmodel_cli.core.readers.text_samples import Reading


def show_text(path: Path, source: str, how: Reading, json: bool) -> None:
    """Print how the data source named `source` reads `path`: splits, tokens, classes.

    Raises:
        InputError: a line is not what the source expects; the message names the line.
    """
    from bigmodel_cli.core.recipe import data_root
    from bigmodel_cli.core.registry import data
    from bigmodel_cli.core.sources import VariableLengthSource
    from bigmodel_cli.core.tokenizers.tokens import tokenizer
    from bigmodel_cli.data.text.windows import Windows
    from bigmodel_cli.engine.training.class_weighted_loss import imbalance_notes

    entry = data.get(source)
    bundle = entry(data_root(None), path=str(path), **how.options())
    splits = {name: load() for name, load in bundle.load.items()}
    spec = bundle.spec
    facts: dict[str, Any] = {"read as": source, "tokenizer": spec.tokenizer, "vocabulary": tokenizer(spec).size}
    for name, split in splits.items():
        if isinstance(split, Windows):  # cut into windows anywhere, so a number of samples says nothing
            facts[f"{name} tokens"] = len(split.tokens)
        else:
            facts[f"{name} samples"] = len(split)
    first = splits["train" if "train" in splits else min(splits)]
    if isinstance(first, VariableLengthSource):
        lengths = first.lengths
        facts |= {"median tokens of a sample": int(lengths.median()), "longest": int(lengths.max())}
    classes = {c: sum(int((split.labels == i).sum()) for split in splits.values()) for i, c in enumerate(spec.classes)}
    imbalance = imbalance_notes(first, spec.classes, "none")  # the counts are of all splits together
    notes = [*bundle.notes, *imbalance, *doubts(bundle, splits)]
    if json:
        console.print_json({"path": str(path), **facts, "classes": classes, "notes": notes})
        return
    rows = [(name, f"{value:,}" if isinstance(value, int) else value) for name, value in facts.items()]
    rows += [(f"class {name}", f"{count:,}") for name, count in classes.items()]
    console.show(console.table(f"text in {path}", ("", "value"), rows, right=True))
    for note in notes:
        console.note(note)
    say_next(entry.meta.get("next", "train MODEL"), str(path), how)
