"""``predict`` with a table of users and items: the rating of each pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.arguments.unused_options import refuse_unused
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.prediction_file import check_name, write_predictions
from bigmodel_cli.commands.recommendation.items import interaction_spec
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.text_samples import Reading

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.core.interactions import InteractionSpec
    from bigmodel_cli.engine.build.load import TrainedModel

PAIRS_AT_ONCE = 65536


def show_ratings(trained: TrainedModel, files: Sequence[Path], how: Reading, out: Path | None, json: bool) -> None:
    """Print the predicted rating of each pair in the tables `files`; a pair of an unknown user or item is an error.

    The known pairs are still rated. With `out` they are written there, and a line says so.

    Raises:
        InputError: the model rates no pairs, a table cannot be read, or a pair is not known.
        MachineError: `out` cannot be written.
    """
    refuse_unused(("top", "tta", "device", "precision"), "ratings of pairs")
    spec = interaction_spec(trained)
    if "item" not in trained.task.inputs:
        raise InputError(f"{trained.path} ranks items for users", "expected --user ID", "bigmodel predict --help")
    if out is not None:
        check_name(out)
    errors, rows = list[InputError](), list[dict[str, Any]]()
    for file in files:
        pairs = _known_pairs(file, spec, how, errors)
        ratings = _ratings(trained, pairs).tolist()
        for (line, user, item), rating in zip(pairs, ratings, strict=True):
            row = {"file": str(file), "line": line, "user": spec.user_id(user), "item": spec.item_id(item)}
            if json and out is None:
                console.print_json({**row, "rating": rating})
            rows.append({**row, "title": spec.title(item), "rating": rating})
    if out is not None:
        write_predictions(out, rows, len(errors), json)
    elif rows and not json:
        names = ("user", "item", "title")
        cells = [(*(row[name] for name in names), f"{row['rating']:.3f}") for row in rows]
        console.show(console.table(None, (*names, "rating"), cells))
    console.report(errors)


def _known_pairs(
    file: Path, spec: InteractionSpec, how: Reading, errors: list[InputError]
) -> list[tuple[int, int, int]]:
    """The line, the user and the item of each pair that the model knows; an error for each that it does not."""
    from bigmodel_cli.core.readers.tables import as_text
    from bigmodel_cli.core.readers.text_samples import open_for

    opened = open_for(file, ("user", "item"), how, notes := list[str]())
    for note in notes:
        console.note(note)
    users = {name: i for i, name in enumerate(spec.user_ids)}
    items = {name: i for i, name in enumerate(spec.item_ids)}
    pairs = []
    for line, values in opened.rows("user", "item"):
        user, item = (as_text(value, opened.located(line), "id").strip() for value in values)
        try:
            numbers = users[user] if user in users else spec.user_index(user), \
                items[item] if item in items else spec.item_index(item)  # fmt: skip
        except InputError as error:
            errors.append(InputError(f"{opened.located(line)}: {error.what}", error.expected, error.hint))
            continue
        pairs.append((line, *numbers))
    return pairs


def _ratings(trained: TrainedModel, pairs: Sequence[tuple[int, int, int]]) -> Tensor:
    """(N,) the ratings of `pairs` (line, user, item), within the range of ratings."""
    import torch

    spec = trained.task.spec
    index = torch.tensor([pair[1:] for pair in pairs], dtype=torch.int64).view(-1, 2)
    with torch.inference_mode():
        parts = [trained.model(part[:, 0], part[:, 1]).float() for part in index.split(PAIRS_AT_ONCE)]
    return torch.cat(parts).clamp(spec.low, spec.high) if parts else torch.zeros(0)
