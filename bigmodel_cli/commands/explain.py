"""``bigmodel explain``: which words, or which part of an image, made a checkpoint answer as it did."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.core.errors import InputError, MachineError, nearest, printable

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.engine.build.load import TrainedModel


class Method(StrEnum):
    """How an answer is explained."""

    integrated_gradients = "integrated-gradients"
    grad_cam = "grad-cam"


def explain(
    checkpoint: opt.Checkpoint,
    files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE...]", help="Texts, or images.")] = None,
    texts: Annotated[list[str] | None, typer.Option("--text", help="A text; for a language model, a prompt.")] = None,
    wanted: Annotated[
        str | None, typer.Option("--class", help="The class or next token to explain.  [default: the likeliest]")
    ] = None,
    method: Annotated[Method, typer.Option("--method", help="grad-cam is for images.")] = Method.integrated_gradients,
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000, help="Points of the path that is summed.")] = 64,
    out: Annotated[Path | None, typer.Option("--out", help="Page of texts; folder for images, with heat.")] = None,
    json: opt.Json = False,
) -> None:
    """Show what an answer came from: each word's weight, or the part of an image.

    The weights of a text sum to the answer's log-probability less that of a text of nothing.

    Examples:

        bigmodel explain runs/text-cnn-rt-polarity-1 --text "a dull film"

        bigmodel explain runs/gpt-nano-tinyshakespeare-1 --text "to be or not to" --json

        bigmodel explain runs/resnet18-digits-1 three.png --method grad-cam --out heat
    """
    from bigmodel_cli.engine.build.load import load_trained

    trained = load_trained(checkpoint)
    if trained.task.spec.kind == "text":
        if method is Method.grad_cam:
            raise InputError("--method grad-cam is for images", hint="--method integrated-gradients")
        found = [_explained(trained, *sample, wanted, steps) for sample in _texts(trained, files or [], texts or [])]
        _show_texts(trained, found, out, json)
    else:
        if texts:
            raise InputError(f"{trained.path} takes images", "expected files, no --text")
        _images(trained, files or [], wanted, method, steps, out or Path("explained"), json)


def _texts(trained: TrainedModel, files: list[Path], texts: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Each text's name and its tokens (T,), as the model takes them."""
    import torch

    from bigmodel_cli.core.text_files import read_lines
    from bigmodel_cli.core.tokens import encode_padded

    task = trained.task
    if hasattr(task, "labels") or hasattr(task, "prompt"):
        lines = [(f"{f}:{i}", line) for f in files for i, line in enumerate(read_lines(f), 1) if line.strip()]
        given = [*((f"text {i}", text) for i, text in enumerate(texts, 1)), *lines]
        if not given:
            raise InputError("nothing to explain", "expected --text or a file", "bigmodel explain --help")
        for name, text in given:
            if hasattr(task, "prompt"):
                yield name, torch.tensor(task.prompt(text)[-task.spec.context :])
            else:
                yield name, encode_padded([text], task.spec, framed=True)[0]
        return
    raise InputError(f"{trained.path}: {task.name.replace('_', ' ')}", "expected a classifier or a language model")


def _explained(trained: TrainedModel, name: str, tokens: Tensor, wanted: str | None, steps: int) -> dict[str, Any]:
    import torch

    from bigmodel_cli.core.registry import models
    from bigmodel_cli.core.tokens import tokenizer
    from bigmodel_cli.insight.attribution import token_attributions

    model, spec = trained.model, trained.task.spec
    known = tokenizer(spec)
    inner = getattr(model, "inner", None)
    embedding = (
        model.get_submodule(models.get(trained.recipe.model.name).meta["backbone_first"])
        if inner is None
        else inner.get_input_embeddings()
    )

    def answers(outputs: Tensor) -> Tensor:
        """(S,K) log-probabilities; of a language model those of the next token."""
        return (outputs[:, -1] if outputs.dim() == 3 else outputs).float().log_softmax(1)

    with torch.no_grad():
        said = answers(model(tokens[None]))[0]
    names = list(spec.classes) or list(known.tokens())
    answer = int(said.argmax()) if wanted is None else _place(wanted, names, known, bool(spec.classes))
    found = token_attributions(model, embedding, tokens, lambda y: answers(y)[:, answer], steps)
    return {
        "name": name,
        "answer": names[answer] if spec.classes else known.decode([answer]) or names[answer],
        "probability": float(said[answer].exp()),
        "tokens": [known.decode([i]) or known.tokens()[i] for i in tokens.tolist()],
        "weights": found.values.tolist(),
        "score": found.score,
        "baseline": found.baseline,
        "gap": found.gap,
    }


def _place(wanted: str, names: list[str], known: Any, classes: bool) -> int:
    """The id of a class, or of the token that a text begins with."""
    if wanted in names:
        return names.index(wanted)
    if classes:
        raise InputError(f"--class {wanted}", nearest(wanted, names))
    ids = list(known.encode(wanted))
    if len(ids) != 1:
        raise InputError(f"--class {wanted!r} is {len(ids)} tokens", "expected one")
    return int(ids[0])


def _show_texts(trained: TrainedModel, found: list[dict[str, Any]], out: Path | None, json: bool) -> None:
    from bigmodel_cli.insight.explanations import colour, page

    if out is not None:
        _write(out, page(f"What {trained.path.parent.name or trained.path.name} answered, and why", found))
    for text in found:
        if json:
            console.print_json(text)
            continue
        most = max((abs(w) for w in text["weights"]), default=0.0)
        line = Text()
        for token, weight in zip(text["tokens"], text["weights"], strict=True):
            r, g, b = colour(weight, most)
            line.append(printable(token), style=f"black on rgb({r},{g},{b})")
            if trained.task.spec.tokenizer == "word":
                line.append(" ")
        console.say(f"{text['name']}: {text['answer']!r} {text['probability']:.2%}")
        console.show(line)
        rows = [(repr(t), f"{w:+.3f}") for t, w in zip(text["tokens"], text["weights"], strict=True)]
        rows += [("sum", f"{sum(text['weights']):+.3f}"), ("difference", f"{text['score'] - text['baseline']:+.3f}")]
        console.show(console.table(None, ("token", "weight"), rows, right=True))
    if out is not None and not json:
        console.say(f"page {out}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MachineError(f"{path}: cannot write: {error.strerror}", hint="give another --out") from None


def _images(
    trained: TrainedModel, files: list[Path], wanted: str | None, method: Method, steps: int, out: Path, json: bool
) -> None:
    import torch

    from bigmodel_cli.commands.predict import _expand
    from bigmodel_cli.insight.attribution import grad_cam, integrated_gradients
    from bigmodel_cli.insight.explanations import heat_of, overlay

    task, model, spec = trained.task, trained.model, trained.task.spec
    if not files:
        raise InputError("nothing to explain", "expected images", "bigmodel explain --help")
    rows: list[tuple[str, ...]] = []
    for name, raw in (sample for file in _expand(files) for sample in task.readings(file)):
        image = task.prepare(raw)["image"][0]
        with torch.no_grad():
            said = model(image[None])[0].float().log_softmax(0)
        names = list(spec.classes)
        answer = int(said.argmax()) if wanted is None else _place(wanted, names, None, True)
        mean, std = (torch.tensor(v or (d,) * spec.channels).view(-1, 1, 1) for v, d in ((spec.mean, 0), (spec.std, 1)))
        values: dict[str, Any] = {"file": name, "class": names[answer], "probability": float(said[answer].exp())}
        if method is Method.grad_cam:
            heat = grad_cam(model, image, answer)
        else:
            black = ((0 - mean) / std).expand_as(image)
            found = integrated_gradients(functools.partial(_log_probability, model, answer), image, black, steps)
            heat = heat_of(found.values)
            values |= {"score": found.score, "baseline": found.baseline, "gap": found.gap}
        try:
            out.mkdir(parents=True, exist_ok=True)
            path = out / f"{len(rows):04}-{Path(name).stem}-{method.value}.png"
            overlay(image * std + mean, heat, path)
        except OSError as error:
            raise MachineError(f"{out}: cannot write: {error.strerror or error}", hint="give another --out") from None
        rows.append((name, names[answer], f"{values['probability']:.2%}", str(path)))
        if json:
            console.print_json({**values, "image": str(path)})
    if not json:
        console.show(console.table(None, ("image", "answer", "probability", "written"), rows))


def _log_probability(model: Any, answer: int, images: Tensor) -> Tensor:
    return model(images).float().log_softmax(1)[:, answer]  # type: ignore[no-any-return]
