"""``bigmodel explain``: which words, or which part of an image, led to a prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.core import atomic_files
from bigmodel_cli.core.errors import InputError, MachineError, nearest, printable
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.engine.build.load import TrainedModel
    from bigmodel_cli.tasks.answers import Answer


class Method(StrEnum):
    """The attribution method."""

    integrated_gradients = "integrated-gradients"
    grad_cam = "grad-cam"


Files = Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="Images or text files.")]
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
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="PATH",
        help="HTML page of texts, or folder of heat maps of images.  [default: explained/ for images]",
    ),
]


@commands.register(order=80)
def explain(
    checkpoint: opt.Checkpoint,
    files: Files = None,
    texts: Texts = None,
    columns: opt.Columns = None,
    users: Users = None,
    top: Top = 10,
    data_dir: opt.DataDir = None,
    target: Target = None,
    method: Annotated[
        Method, typer.Option("--method", help="Attribution method; grad-cam is for images.")
    ] = Method.integrated_gradients,
    steps: Steps = 64,
    out: Out = None,
    json: opt.Json = False,
) -> None:
    """Explain a prediction: weigh each word of a text or item of a history, or draw a heat map over an image.

    The weights of a text sum to the log-probability of the answer minus that of an empty baseline.

    Examples:

        bigmodel explain runs/text-cnn-rt-polarity-1 --text "a dull film"

        bigmodel explain runs/gpt-nano-tinyshakespeare-1 --text "to be or"

        bigmodel explain runs/resnet18-digits-1 three.png --method grad-cam

        bigmodel explain runs/sasrec-movielens-100k-1 --user 42
    """
    from bigmodel_cli.commands.recommend_items import explain_recommendations
    from bigmodel_cli.engine.build.load import load_trained

    trained = load_trained(checkpoint)
    if users or trained.task.spec.kind == "interactions":
        explain_recommendations(trained, users or [], bool(files or texts), top, json, data_dir)
    elif trained.task.spec.kind == "text":
        if method is Method.grad_cam:
            raise InputError("--method grad-cam is for images", hint="use --method integrated-gradients for texts")
        found = [
            _explain_text(trained, *sample, target, steps)
            for sample in _read_texts(trained, files or [], texts or [], opt.table_columns(columns, trained.recipe))
        ]
        _show_texts(trained, found, out, json)
    else:
        if texts:
            raise InputError(f"{trained.path} is a model of images", "expected FILE, not --text")
        _explain_images(trained, files or [], target, method, steps, out or Path("explained"), json)


def _read_texts(
    trained: TrainedModel, files: list[Path], texts: list[str], columns: Mapping[str, str] | None
) -> Iterator[tuple[str, Tensor]]:
    """Name and tokens (T,) of each text."""
    import torch

    from bigmodel_cli.core.answering import Answers
    from bigmodel_cli.core.tasks import Generates
    from bigmodel_cli.core.text_samples import read_texts
    from bigmodel_cli.core.tokens import encode_padded

    task = trained.task
    if isinstance(task, (Answers, Generates)):
        lines = [(name, text) for f in files for name, text in read_texts(f, "text", columns) if text.strip()]
        given = [*((f"text {i}", text) for i, text in enumerate(texts, 1)), *lines]
        if not given:
            raise InputError("nothing to explain", "expected --text or FILE", "bigmodel explain --help")
        for name, text in given:
            if isinstance(task, Generates):
                yield name, torch.tensor(task.encode_prompt(text)[-task.spec.context :])
            else:
                yield name, encode_padded([text], task.spec, framed=True)[0]
        return
    raise InputError(f"{trained.path}: {task.name.replace('_', ' ')}", "expected a classifier or a language model")


def _explain_text(trained: TrainedModel, name: str, tokens: Tensor, target: str | None, steps: int) -> dict[str, Any]:
    import torch

    from bigmodel_cli.core.networks import HasInputEmbeddings
    from bigmodel_cli.core.registry import models
    from bigmodel_cli.core.tokens import tokenizer
    from bigmodel_cli.insight.attribution import token_attributions
    from bigmodel_cli.tasks.answers import answer_of

    model, spec = trained.model, trained.task.spec
    known = tokenizer(spec)
    embedding = (
        model.get_input_embeddings()
        if isinstance(model, HasInputEmbeddings)
        else model.get_submodule(models.get(trained.recipe.model.name).meta["backbone_first"])
    )

    kind = answer_of(trained.task)

    def scores(outputs: Tensor) -> Tensor:
        """(S,K) over the outputs or, for a language model, over the next token."""
        return kind.explained(outputs[:, -1] if outputs.dim() == 3 else outputs, spec)

    with torch.no_grad():
        predicted = scores(model(tokens[None]))[0]
    names = list(spec.classes) or list(known.tokens())
    answer = int(predicted.argmax()) if target is None else _target_index(target, names, known, bool(spec.classes))
    found = token_attributions(model, embedding, tokens, lambda y: scores(y)[:, answer], steps)
    quantity, value, shown = kind.shown(float(predicted[answer]))
    return {
        "name": name,
        "answer": names[answer] if spec.classes else known.decode([answer]) or names[answer],
        quantity: value,
        "shown": shown,
        "tokens": [known.decode([i]) or known.tokens()[i] for i in tokens.tolist()],
        "weights": found.values.tolist(),
        "score": found.score,
        "baseline": found.baseline,
        "gap": found.gap,
    }


def _target_index(target: str, names: list[str], known: Any, classes: bool) -> int:
    """The index of the class, or of the token, named `target`."""
    if target in names:
        return names.index(target)
    if classes:
        raise InputError(f"--class {target}: no such class", nearest(target, names))
    ids = list(known.encode(target))
    if len(ids) != 1:
        raise InputError(f"--class {target!r} is {len(ids)} tokens", "expected a single token")
    return int(ids[0])


def _show_texts(trained: TrainedModel, found: list[dict[str, Any]], out: Path | None, json: bool) -> None:
    from bigmodel_cli.insight.explanations import colour, page

    if out is not None:
        _write(out, page(f"Predictions of {trained.path.parent.name or trained.path.name}, explained", found))
    for text in found:
        if json:
            console.print_json(text)
            continue
        largest = max((abs(w) for w in text["weights"]), default=0.0)
        line = Text()
        for token, weight in zip(text["tokens"], text["weights"], strict=True):
            r, g, b = colour(weight, largest)
            line.append(printable(token), style=f"black on rgb({r},{g},{b})")
            if trained.task.spec.tokenizer == "word":
                line.append(" ")
        console.say(f"{text['name']}: {text['answer']!r} {text['shown']}")
        console.show(line)
        rows = [(repr(t), f"{w:+.3f}") for t, w in zip(text["tokens"], text["weights"], strict=True)]
        rows += [("sum", f"{sum(text['weights']):+.3f}"), ("difference", f"{text['score'] - text['baseline']:+.3f}")]
        console.show(console.table(None, ("token", "weight"), rows, right=True))
    if out is not None and not json:
        console.say(f"page: {out}")


def _write(path: Path, text: str) -> None:
    atomic_files.write_text(path, text)


def _explain_images(
    trained: TrainedModel, files: list[Path], target: str | None, method: Method, steps: int, out: Path, json: bool
) -> None:
    import torch

    from bigmodel_cli.commands.input_files import expand_inputs
    from bigmodel_cli.core.tasks import Predicts
    from bigmodel_cli.insight.attribution import grad_cam, integrated_gradients
    from bigmodel_cli.insight.explanations import heatmap_of, overlay
    from bigmodel_cli.tasks.answers import answer_of

    task, model, spec = trained.task, trained.model, trained.task.spec
    if not isinstance(task, Predicts):
        raise InputError(f"{trained.path}: {task.name.replace('_', ' ')}", "expected a classifier of images")
    if not files:
        raise InputError("nothing to explain", "expected FILE", "bigmodel explain --help")
    kind = answer_of(task)
    rows: list[tuple[str, ...]] = []
    for name, raw in (sample for file in expand_inputs(files, task.spec.kind) for sample in task.read_file(file)):
        image = task.prepare(raw)["image"][0]
        with torch.no_grad():
            predicted = kind.explained(model(image[None]), spec)[0]
        names = list(spec.classes)
        answer = int(predicted.argmax()) if target is None else _target_index(target, names, None, True)
        mean, std = (torch.tensor(v or (d,) * spec.channels).view(-1, 1, 1) for v, d in ((spec.mean, 0), (spec.std, 1)))
        quantity, value, shown = kind.shown(float(predicted[answer]))
        values: dict[str, Any] = {"file": name, "class": names[answer], quantity: value}
        if method is Method.grad_cam:
            heat = grad_cam(model, image, answer)
        else:
            black = ((0 - mean) / std).expand_as(image)
            found = integrated_gradients(partial(_score, kind, model, spec, answer), image, black, steps)
            heat = heatmap_of(found.values)
            values |= {"score": found.score, "baseline": found.baseline, "gap": found.gap}
        try:
            out.mkdir(parents=True, exist_ok=True)
            path = out / f"{len(rows):04}-{Path(name).stem}-{method.value}.png"
            overlay(image * std + mean, heat, path)
        except OSError as error:
            raise MachineError(f"{out}: cannot write: {error.strerror or error}", hint="choose another --out") from None
        rows.append((name, names[answer], shown, str(path)))
        if json:
            console.print_json({**values, "image": str(path)})
    if not json:
        console.show(console.table(None, ("image", "prediction", quantity, "heat map"), rows))


def _score(kind: Answer, model: Any, spec: Any, answer: int, images: Tensor) -> Tensor:
    return kind.explained(model(images), spec)[:, answer]
