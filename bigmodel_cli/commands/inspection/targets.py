"""``bigmodel data inspect --task`` for data with several labels, or with numbers, per sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.inspection.doubts import doubts
from bigmodel_cli.commands.inspection.next_step import say_next

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.core.readers.text_samples import Reading


def show_targets(path: str, source: str, task: str, how: Reading, json: bool) -> None:
    """Print how the data set named `source` reads `path` for `task`: its splits, and their labels or numbers.

    Raises:
        InputError: a cell is not what the task takes; the message names the line.
    """
    import torch

    from bigmodel_cli.commands.display.progress import WaitBars
    from bigmodel_cli.core.recipe import data_root
    from bigmodel_cli.core.registry import data
    from bigmodel_cli.data.targets import MULTI_LABEL
    from bigmodel_cli.tasks.relabelled import targets_of

    entry = data.get(source)
    with WaitBars():
        bundle = entry(data_root(None), task=task, path=path, **how.options())
        splits = {name: load() for name, load in bundle.load.items()}
    values = torch.cat([targets_of(split) for split in splits.values()]).double()
    of_column = _labels if task == MULTI_LABEL else _numbers
    facts: dict[str, Any] = {"read as": source, **{f"{name} samples": len(split) for name, split in splits.items()}}
    found = {name: of_column(column) for name, column in zip(bundle.spec.classes, values.T, strict=True)}
    notes = [*bundle.notes, *doubts(bundle, splits)]
    if json:
        console.print_json({"path": path, "task": task, **facts, "columns": found, "notes": notes})
        return
    rows = [(name, f"{value:,}" if isinstance(value, int) else value) for name, value in facts.items()]
    rows += [(name, ", ".join(f"{key} {value:,.5g}" for key, value in each.items())) for name, each in found.items()]
    console.show(console.table(f"{task.replace('_', ' ')} in {path}", ("", "value"), rows, right=True))
    for note in notes:
        console.note(note)
    say_next(entry.meta["next"], path, how, "--task", task)


def _labels(column: Tensor) -> dict[str, float]:
    return {"samples": int(column.sum()), "share": float(column.mean())}


def _numbers(column: Tensor) -> dict[str, float]:
    return {"min": float(column.min()), "median": float(column.median()), "max": float(column.max()),
            "mean": float(column.mean()), "deviation": float(column.std(unbiased=False))}  # fmt: skip
