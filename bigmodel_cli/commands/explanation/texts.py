"""The part of ``bigmodel explain`` for texts: the weight of each word in the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from bigmodel_cli.commands.arguments.input_files import readable
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.pages import require_place
from bigmodel_cli.core.errors import InputError, nearest, printable
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.readers.text_samples import Reading

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.engine.build.load import TrainedModel

METHOD = "integrated-gradients"


@dataclass(frozen=True)
class TextOptions:
    """The texts to explain, in files and given, and how: `methods` may name METHOD only."""

    files: list[Path]
    texts: list[str]
    how: Reading
    methods: Sequence[str]
    steps: int


def explain_texts(
    trained: TrainedModel,
    options: TextOptions,
    target: str | None,
    out: Path | None,
    json: bool,
    errors: list[InputError],
) -> None:
    """Explain the answer for each text; why a file cannot be read is added to `errors`."""
    from bigmodel_cli.engine.inference.predict import cut_note

    others = sorted(set(options.methods) - {METHOD})
    if others:
        raise InputError(f"--method {', '.join(others)} is for images", hint=f"use --method {METHOD} for texts")
    require_place(out)
    cut: list[bool] = []
    samples = _read_texts(trained, options, errors, cut)
    found = [_explain_text(trained, *sample, target, options.steps) for sample in samples]
    if not found:
        return
    _show_texts(trained, found, out, json)
    if any(cut):
        console.note(cut_note(sum(cut), len(found), trained.task))


def _read_texts(
    trained: TrainedModel, options: TextOptions, errors: list[InputError], cut: list[bool]
) -> Iterator[tuple[str, Tensor]]:
    """Name and tokens (T,) of each text; whether it is longer than these is added to `cut`."""
    import torch

    from bigmodel_cli.core.answering import Answers
    from bigmodel_cli.core.readers.text_samples import read_texts
    from bigmodel_cli.core.tasks import CUT, EncodesTexts, Generates

    task = trained.task
    if not isinstance(task, Generates) and not (isinstance(task, Answers) and isinstance(task, EncodesTexts)):
        raise InputError(f"{trained.path}: {task.name.replace('_', ' ')}", "expected a classifier or a language model")
    lines = list(readable(options.files, lambda file: read_texts(file, "text", options.how), errors))
    given = [(f"text {i}", text) for i, text in enumerate(options.texts, 1)]
    given += [(name, text) for name, text in lines if text.strip()]
    if not given and not errors:
        raise InputError("nothing to explain", "expected --text or FILE", "bigmodel explain --help")
    for name, text in given:
        if isinstance(task, Generates):
            tokens = torch.tensor(task.encode_prompt(text))
            cut.append(len(tokens) > task.spec.context)
            yield name, tokens[-task.spec.context :]
        else:
            encoded = task.encode_texts([text])
            cut.append(bool(encoded[CUT][0]))
            yield name, encoded["tokens"][0]


def _explain_text(trained: TrainedModel, name: str, tokens: Tensor, target: str | None, steps: int) -> dict[str, Any]:
    import torch

    from bigmodel_cli.core.networks import HasInputEmbeddings
    from bigmodel_cli.core.registry import models
    from bigmodel_cli.core.tokenizers.tokens import tokenizer
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
    from bigmodel_cli.core.tokenizers.tokens import tokenizer
    from bigmodel_cli.insight.explanations import colour, page

    if out is not None:
        atomic_files.write_text(
            out, page(f"Predictions of {trained.path.parent.name or trained.path.name}, explained", found)
        )
    separator = tokenizer(trained.task.spec).separator
    for text in found:
        if json:
            console.print_json(text)
            continue
        largest = max((abs(w) for w in text["weights"]), default=0.0)
        line = Text()
        for token, weight in zip(text["tokens"], text["weights"], strict=True):
            r, g, b = colour(weight, largest)
            line.append(printable(token), style=f"black on rgb({r},{g},{b})")
            line.append(separator)
        console.say(f"{text['name']}: {text['answer']!r} {text['shown']}")
        console.show(line)
        rows = [(repr(t), f"{w:+.3f}") for t, w in zip(text["tokens"], text["weights"], strict=True)]
        rows += [("sum", f"{sum(text['weights']):+.3f}"), ("difference", f"{text['score'] - text['baseline']:+.3f}")]
        console.show(console.table(None, ("token", "weight"), rows, right=True))
    if out is not None and not json:
        console.say(f"page: {out}")
