"""``bigmodel predict``: a checkpoint's predictions for files and texts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.arguments.input_files import expand_inputs, reading, with_standard_input
from bigmodel_cli.commands.arguments.options import RunOptions
from bigmodel_cli.commands.arguments.recipe_layers import checkpoint_recipe
from bigmodel_cli.commands.arguments.signatures import takes_options
from bigmodel_cli.commands.arguments.unused_options import refuse_columns, refuse_unused
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.prediction_file import check_name, write_predictions
from bigmodel_cli.commands.isolation.foreign_runtime import runs_export, runtime_died
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.tables import table_suffix
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from bigmodel_cli.core.tasks import Predicts
    from bigmodel_cli.engine.build.load import TrainedModel

Files = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FILE",
        help="Images, text files with one sample per line, or folders of them; - reads lines from standard input.",
    ),
]
Texts = Annotated[list[str] | None, typer.Option("--text", metavar="TEXT", help="A text to predict; repeatable.")]


Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Write a table with the value of every class, .csv or .jsonl, and print none."
    ),
]
Top = Annotated[
    int, typer.Option("--top", metavar="N", min=1, help="Show the N most likely classes, or the N best items.")
]
Users = Annotated[
    list[str] | None,
    typer.Option("--user", metavar="ID", help="Recommend items to a user of the data; repeatable."),
]


@commands.register(order=70, died=runtime_died, supervised_when=runs_export)
@takes_options("predict", device="the checkpoint's", precision="the checkpoint's")
def predict(
    *,
    checkpoint: opt.Checkpoint,
    files: Files = None,
    texts: Texts = None,
    users: Users = None,
    top: Top = 3,
    pretrained: opt.Pretrained = False,
    options: RunOptions,
    columns: opt.Columns = None,
    encoding: opt.Encoding = None,
    tta: opt.Tta = False,
    trust: opt.Trust = False,
    out: Out = None,
    json: opt.Json = False,
) -> None:
    """Predict images, texts or rows of a table; translate lines; recommend items to a user; rate pairs.

    Files that cannot be read are reported; the others are still predicted.

    Examples:

        bigmodel predict runs/resnet18-digits-1 three.png photos/ --top 1 --json

        bigmodel predict timm:resnet18 --pretrained photo.jpg

        bigmodel predict ckpt.pt reviews.csv --columns text=review --out out.csv

        bigmodel predict runs/text-cnn-rt-polarity-1 --text "a fine film"

        head -100 reviews.txt | bigmodel predict runs/text-cnn-rt-polarity-1 - --json

        bigmodel predict runs/sasrec-movielens-100k-1 --user 42 --top 10

        bigmodel predict runs/mf-1 pairs.csv --columns user=who,item=film
    """
    from bigmodel_cli.commands.arguments.open_model import open_trained
    from bigmodel_cli.commands.recommendation.ratings import show_ratings
    from bigmodel_cli.core.interactions import Recommends

    files, first, others = with_standard_input(files or [], texts or [])
    if not (files or first is not None or users):
        raise InputError("nothing to predict", "expected FILE, --text or --user", "bigmodel predict --help")
    trained = open_trained(checkpoint, trust, pretrained=pretrained, data_dir=options.data_dir)
    if isinstance(trained.task, Recommends) and files and not (users or first is not None):
        show_ratings(trained, files, reading(columns, encoding, trained.recipe), out, json)
    elif users or isinstance(trained.task, Recommends):
        _recommend(trained, options, users or [], bool(files or first is not None), top, json)
    else:
        _predict_samples(trained, options, Samples(files, first, others, columns, encoding, top, tta, out), json)


def _recommend(
    trained: TrainedModel, options: RunOptions, users: list[str], has_samples: bool, top: int, json: bool
) -> None:
    from bigmodel_cli.commands.recommendation.items import show_recommendations

    refuse_unused(("columns", "encoding", "tta", "device", "precision", "out"), "recommendations")
    show_recommendations(trained, options, users, has_samples, top, json)


@dataclass(frozen=True)
class Samples:
    """The files and texts to predict, and how; each other field is the option of that name."""

    files: list[Path]
    first: str | None
    """The first text; None if there are none."""
    others: Iterator[str]
    """The texts after it."""
    columns: opt.Columns
    encoding: opt.Encoding
    top: int
    tta: bool
    out: Path | None


def _predict_samples(trained: TrainedModel, options: RunOptions, given: Samples, json: bool) -> None:
    """Print the predictions for the texts and for the samples in the files of `given`, or write them into a file."""
    from bigmodel_cli.core.answering import NamesAnswer
    from bigmodel_cli.core.tasks import Classifies, EncodesTexts
    from bigmodel_cli.engine.device.placement import choose_placement
    from bigmodel_cli.engine.device.process import configure_process
    from bigmodel_cli.engine.inference.predict import optimize_for_files, predict_files
    from bigmodel_cli.engine.inference.tta import with_flip_tta

    files, top, out = given.files, given.top, given.out
    task = predicting_task(trained, given.first is not None)
    if isinstance(task, NamesAnswer) and task.answers == "numbers":
        refuse_unused(("top",), "numbers, which have no alternatives")
    if not isinstance(task, NamesAnswer):
        refuse_unused(("top",), task.name.replace("_", " "))
    if out is not None:
        check_name(out)
        refuse_unused(("top",), "a file, which has the value of every class")
        top = len(task.spec.classes) or top
    recipe = checkpoint_recipe(trained, options.flag_layers())
    configure_process(placement := choose_placement(recipe.placement))
    model = placement.model(with_flip_tta(trained.model, task) if given.tta else trained.model)
    how = reading(given.columns, given.encoding, recipe)
    if isinstance(task, EncodesTexts) and (missing := next((f for f in files if not f.exists()), None)):
        console.note(f'no file is called {missing}; a text itself is given by --text "{missing}"')
    listed = expand_inputs(files, task.spec.kind, how, absent := list[InputError]())
    refuse_columns(given.columns, (*files, *listed))
    if not files or (task.spec.kind == "image" and not any(map(table_suffix, files))):
        refuse_unused(("encoding",), "images" if files else "texts that are typed")
    quick = optimize_for_files(model, task, placement, listed, recipe.placement.precision == "auto")
    if quick.note:
        console.note(quick.note)
    notes: list[str] = []
    texts = () if given.first is None else itertools.chain([given.first], given.others)
    found = predict_files(quick.model, task, quick.placement, listed, top, texts, how, notes)
    _show(found, task, notes, absent, out, json)
    if not json and out is None and isinstance(task, Classifies):
        example = [str(listed[0])] if given.first is None else ["--text", given.first]
        console.note_next(trained.path, "explain", *example)


def predicting_task(trained: TrainedModel, from_texts: bool) -> Predicts:
    """The task, which predicts files and, with `from_texts`, texts.

    Raises:
        InputError: it does not.
    """
    from bigmodel_cli.core.tasks import EncodesTexts, Generates, Predicts

    task = trained.task
    if isinstance(task, Predicts) and (not from_texts or isinstance(task, EncodesTexts)):
        return task
    hint = "bigmodel generate CKPT --prompt ..." if isinstance(task, Generates) else None
    what = f"{trained.path}: {task.name.replace('_', ' ')}"
    raise InputError(what, "expected a classifier or a translation model" + " for --text" * from_texts, hint)


def _show(
    predictions: Iterable[tuple[str, list[tuple[str, float]] | InputError]],
    task: Predicts,
    notes: list[str],
    errors: list[InputError],
    out: Path | None,
    json: bool,
) -> None:
    """Print the predictions as they come with `json`, else as a table, then `notes`; then raise the last error, if any.

    With `out` they are written there, and a line says so. `notes` are complete once the predictions are; `errors` are
    those of samples that were not found.
    """
    from bigmodel_cli.tasks.answers import answer_of

    kind = answer_of(task)
    rows, written = [], []
    for name, answer in predictions:
        if isinstance(answer, InputError):
            errors.append(answer)
        elif out is not None:
            written.append({"name": name, **kind.to_cells(answer, task.spec)})
        elif json:
            console.print_json({"file": name, **kind.to_json(answer, task.spec)})
        else:
            rows.append((name, *kind.to_row(answer, task.spec)))
    if rows:
        console.show(console.table(None, ("sample", *kind.columns), rows))
    if out is not None:
        write_predictions(out, written, len(errors), json)
    for note in notes:
        console.note(note)
    console.report(errors)
