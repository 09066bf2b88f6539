"""``bigmodel explain``: which words, or which part of an image, led to a prediction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.arguments.input_files import expand_inputs, reading
from bigmodel_cli.commands.arguments.unused_options import refuse_columns, refuse_unused
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import commands, explanations

if TYPE_CHECKING:
    from bigmodel_cli.core.readers.text_samples import Reading
    from bigmodel_cli.engine.build.load import TrainedModel

Files = Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="Images, text files, or folders of them.")]
Texts = Annotated[
    list[str] | None,
    typer.Option("--text", metavar="TEXT", help="A text or, for a language model, a prompt; repeatable."),
]
Users = Annotated[
    list[str] | None,
    typer.Option("--user", metavar="ID", help="A user whose recommendation to explain; repeatable."),
]
Top = Annotated[int, typer.Option("--top", metavar="N", min=1, help="Items of the history to list (--user).")]
Target = Annotated[
    str | None,
    typer.Option(
        "--class",
        metavar="NAME",
        help="Class, label, number or next token to explain.  [default: the most likely]",
    ),
]
Steps = Annotated[
    int, typer.Option("--steps", metavar="N", min=1, max=1000, help="Steps of the integral (integrated gradients).")
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help=f"Method; repeatable: {opt.listed('explanations')}  [default: all that apply to an image]",
        autocompletion=opt.complete("explanations"),
    ),
]
Checks = Annotated[bool, typer.Option("--checks/--no-checks", help="Check whether maps of images can be believed.")]
Nearest = Annotated[
    int, typer.Option("--nearest", metavar="N", min=0, help="Also show the N training images most like each image.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="PATH",
        help="HTML page to write, or folder of pictures with a page.  [default: explained/ for images]",
    ),
]


@commands.register(order=80)
def explain(
    checkpoint: opt.Checkpoint,
    files: Files = None,
    texts: Texts = None,
    columns: opt.Columns = None,
    encoding: opt.Encoding = None,
    users: Users = None,
    top: Top = 10,
    data_dir: opt.DataDir = None,
    pretrained: opt.Pretrained = False,
    target: Target = None,
    method: Methods = None,
    steps: Steps = 64,
    checks: Checks = True,
    nearest: Nearest = 0,
    out: Out = None,
    json: opt.Json = False,
) -> None:
    """Explain a prediction: weigh each word of a text or item of a history, or draw a heat map over an image.

    An image is explained by several methods on one page, each with checks of whether it can be believed. The weights
    of a text sum to the log-probability of the answer minus that of an empty baseline. Bad files are reported.

    Examples:

        bigmodel explain runs/text-cnn-rt-polarity-1 --text "a dull film"

        bigmodel explain runs/gpt-nano-tinyshakespeare-1 --text "to be or"

        bigmodel explain runs/resnet18-digits-1 three.png --out why.html

        bigmodel explain runs/sasrec-movielens-100k-1 --user 42
    """
    from bigmodel_cli.commands.arguments.open_model import open_checkpoint
    from bigmodel_cli.commands.explanation.images import ImageOptions, explain_images
    from bigmodel_cli.commands.explanation.texts import TextOptions, explain_texts

    trained = open_checkpoint(checkpoint, pretrained, data_dir)
    how, errors = reading(columns, encoding, trained.recipe), list[InputError]()
    if users or trained.task.spec.kind == "interactions":
        _explain_recommendations(trained, users or [], bool(files or texts), top, json, data_dir)
    elif trained.task.spec.kind == "text":
        options = TextOptions(_texts(files or [], columns, how), texts or [], how, method or (), steps)
        explain_texts(trained, options, target, out, json, errors)
    else:
        listed = _images(trained, files or [], texts, how, method or [], errors)
        explain_images(trained, listed, ImageOptions(target, method or (), steps, checks, nearest, out, json), errors)
    console.report(errors)
    if not json:
        console.note_next(trained.path, "eval")


def _explain_recommendations(
    trained: TrainedModel, users: list[str], has_samples: bool, top: int, json: bool, data_dir: Path | None
) -> None:
    from bigmodel_cli.commands.recommendation.items import explain_recommendations

    refuse_unused(("columns", "encoding", "target", "method", "steps", "checks", "nearest", "out"), "recommendations")
    explain_recommendations(trained, users, has_samples, top, json, data_dir)


def _texts(files: list[Path], columns: str | None, how: Reading) -> list[Path]:
    """The files of texts in `files`; what was typed and has no effect on them is refused."""
    refuse_unused(("top", "checks", "nearest"), "texts")
    refuse_columns(columns, files)
    return expand_inputs(files, "text", how)


def _images(
    trained: TrainedModel,
    files: list[Path],
    texts: list[str] | None,
    how: Reading,
    methods: list[str],
    missing: list[InputError],
) -> list[Path]:
    """The images in `files`; those that a table names and are not there are added to `missing`.

    Raises:
        InputError: something was typed that has no effect on images.
    """
    refuse_unused(("top",), "images")
    if methods and not any(explanations.get(name).meta.get("integrates") for name in methods):
        refuse_unused(("steps",), " and ".join(methods), "--method integrated-gradients takes them")
    if texts:
        raise InputError(f"{trained.path} is a model of images", "expected FILE, not --text")
    return expand_inputs(files, "image", how, missing)
