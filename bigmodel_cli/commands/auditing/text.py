"""``bigmodel audit`` of a language model's text. Shapes: B texts, T tokens of a window."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.evaluation.trust import Extra
from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.commands.evaluation.measuring import SplitOfData
    from bigmodel_cli.engine.device.placement import Placement

PASSAGES = 200
"""Passages of each split that the model is asked to complete."""
HALF = 32
"""Tokens of a passage that it is shown, and as many that it is asked for."""
TEXTS = 40
LENGTH = 256
"""Texts of the model's own, and as many of val; the most tokens of each."""
BLOCK = 1 << 20
"""Tokens of the training text that are in memory at once."""
LEVEL = 0.01
"""What counts as found has at most this probability by chance."""


@dataclass(frozen=True)
class AuditedModel:
    """A language model on its device, with running text that it may have been trained on."""

    measured: SplitOfData
    train: SplitOfData
    model: Any
    placement: Placement

    @classmethod
    def of(cls, measured: SplitOfData) -> AuditedModel:
        from bigmodel_cli.engine.device.placement import choose_placement

        placement = choose_placement(measured.recipe.placement)
        return cls(measured, measured.other("train"), placement.model(measured.trained.model).eval(), placement)

    def continued(self, prompts: Tensor, count: int, temperature: float) -> Tensor:
        """The next `count` tokens after each of `prompts` (B,T): (B,count)."""
        import torch

        from bigmodel_cli.core.tokenizers.framing import conventions
        from bigmodel_cli.tasks.sampling import Sampling, next_tokens

        begins = list(conventions(self.measured.task.spec).before)
        with torch.inference_mode(), self.placement.autocast():
            rows = [begins + row for row in prompts.tolist()]
            steps = next_tokens(self.model, rows, Sampling(temperature=temperature))
            return torch.stack([step.cpu() for step in itertools.islice(steps, count)], 1)

    def blocks(self) -> Iterator[Tensor]:
        """The training text as the model's tokens, block by block."""
        import torch

        windows = max(1, BLOCK // _window_length(self.train))
        for indices in torch.arange(len(self.train.source)).split(windows):
            yield _windows(self.train, indices).flatten()


def _windows(split: SplitOfData, indices: Tensor) -> Tensor:
    """Consecutive windows of a text as the model's tokens, (B,T); -1 after its end.

    Raises:
        InputError: it is no running text.
    """
    import torch

    batch = split.source.gather(indices)
    if "length" not in batch:
        raise InputError("audit of conversations or of pairs", "expected a language model and data of running text")
    prepared = split.task.prepare(batch)
    # The first token of a window may be replaced by one that begins every text; the last target is the next one's.
    tokens = torch.cat((prepared["tokens"][:, 1:], prepared["targets"][:, -1:]), 1)
    return tokens.masked_fill(torch.arange(tokens.shape[1]) >= batch["length"][:, None], -1)


def _window_length(split: SplitOfData) -> int:
    import torch

    return _windows(split, torch.tensor([0])).shape[1]


def _texts(split: SplitOfData, length: int, most: int) -> Tensor:
    """Up to `most` texts of `length` tokens, evenly spaced: (B,length).

    Raises:
        InputError: the split has none.
    """
    import torch

    from bigmodel_cli.insight.evaluated import evenly

    each = -(-length // _window_length(split))
    first = torch.tensor(list(evenly(len(split.source) // each, most)), dtype=torch.int64)
    indices = (first[:, None] * each + torch.arange(each)).flatten()
    found = _windows(split, indices).reshape(len(first), -1)[:, :length] if len(first) else torch.empty(0, length)
    found = found[(found >= 0).all(1)]
    if not len(found):
        raise InputError(f"the {split.name} split has no {length} tokens in a row", "expected more text")
    return found


def completed(audited: AuditedModel) -> Extra:
    """How often the model completes a passage word for word: of the text it learned, and of text it did not see."""
    from bigmodel_cli.insight.trust.memorisation import p_of_more

    half = min(HALF, _window_length(audited.train) // 2)
    counts: list[int] = []
    values: dict[str, Any] = {"shown": half, "asked": half}
    rows: list[tuple[str, ...]] = []
    for split in (audited.train, audited.measured):
        passages = _texts(split, 2 * half, PASSAGES)
        told = audited.continued(passages[:, :half], half, temperature=0.0)
        count = int((told == passages[:, half:]).all(1).sum())
        counts += [count, len(passages)]
        values[split.name] = {"completed": count, "passages": len(passages)}
        rows.append((split.name, f"{len(passages):,}", f"{count:,}", f"{count / len(passages):.1%}"))
    p = p_of_more(*counts)
    values |= {"p": p, "found": p < LEVEL}
    title = f"passages completed word for word, {half} tokens after {half}; p {p:.2g}"
    return Extra("completed", values, [(title, ("split", "passages", "completed", "share"), rows, True)])


def repeated(audited: AuditedModel) -> Extra:
    """The longest pieces that the model's own text shares with the training text, and those that val shares with it."""
    import numpy

    from bigmodel_cli.core.tokenizers.tokens import tokenizer
    from bigmodel_cli.insight.trust.memorisation import longer, longest_matches

    window = _window_length(audited.measured)
    length = min(LENGTH, max(window, len(audited.measured.source) * window // TEXTS))
    unseen = _texts(audited.measured, length, TEXTS)
    own = audited.continued(_texts(audited.train, 1, TEXTS), length, temperature=1.0)
    texts = numpy.concatenate((own.numpy(), unseen.numpy()))
    matches = longest_matches(texts, (block.numpy() for block in audited.blocks()))
    ours, theirs = matches[: len(own)], matches[len(own) :]
    more, p = longer([match.length for match in ours], [match.length for match in theirs])
    decode = tokenizer(audited.measured.task.spec).decode
    best = sorted(range(len(ours)), key=lambda i: -ours[i].length)[: min(more, 3)]
    pieces = [decode(own[i, ours[i].start :][: ours[i].length].tolist()) for i in best]
    values = {
        "tokens": length, "model": [m.length for m in ours], "val": [m.length for m in theirs],
        "longer_than_val": more, "pieces": pieces, "p": p, "found": p < LEVEL,
    }  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for name, found in (("the model's", ours), ("val", theirs)):
        lengths = sorted(match.length for match in found)
        rows.append((name, f"{len(lengths)}", f"{lengths[len(lengths) // 2]}", f"{lengths[-1]}"))
    title = f"longest piece shared with the training text, of {length} tokens; p {p:.2g}"
    notes = [f"repeated, {ours[i].length} tokens: {json.dumps(text, ensure_ascii=False)}"
             for i, text in zip(best, pieces, strict=True)]  # fmt: skip
    return Extra("repeated", values, [(title, ("text", "texts", "median", "longest"), rows, True)], notes)
