"""``bigmodel audit`` of a language model. Shapes: B batch, T tokens."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.eval_trust import Extra
from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.commands.measuring import SplitOfData

PREFIXES = 200
"""Places in each split whose text the model is asked to complete."""
PREFIX = 32
"""Tokens of such a text that are shown, and as many that are asked for."""
GENERATED = 40
LENGTH = 200
"""Texts of the model's own, and their tokens."""
ALTERNATIVES = 999
DIGITS = 6
NAMES = ("Adair", "Benoit", "Calder", "Dunmore", "Eskil", "Farrow", "Gilroy", "Hallam", "Ingram", "Jarvis")


def audit_text(measured: SplitOfData, canaries: Path | None) -> list[Extra]:
    """What the model repeats of the training text, and the exposure of canaries if a list of them is given."""
    train, val = (_tokens(split) for split in (measured.other("train"), measured))
    model = measured.trained.model.eval()
    found = [_completed(model, train, val), _repeated(model, measured, train, val)]
    return [*found, _exposed(measured, canaries)] if canaries is not None else found


def _tokens(split: SplitOfData) -> Tensor:
    """The windows of a split as the model's tokens, (N,T).

    Raises:
        InputError: it is not running text.
    """
    import torch

    parts = []
    for indices in torch.arange(len(split.source)).split(256):
        batch = split.source.gather(indices)
        if "length" not in batch:
            raise InputError("audit of conversations or pairs", "expected a model and data of running text")
        prepared = split.task.prepare(batch)["tokens"]
        parts.append(prepared[batch["length"] >= prepared.shape[1]])
    whole = torch.cat(parts)
    if not len(whole):
        raise InputError(f"audit: the {split.name} split is shorter than one window", "expected more text")
    return whole


def _completed(model: Any, train: Tensor, val: Tensor) -> Extra:
    """How often the model completes a passage word for word: of the text it learned, and of text it did not see."""
    from bigmodel_cli.insight.trust.memorisation import share_interval

    size = min(PREFIX, train.shape[1] // 2)
    values: dict[str, Any] = {"prefix": size}
    rows: list[tuple[str, ...]] = []
    for name, windows in (("train", train), ("val", val)):
        chosen = windows[_spread(len(windows), PREFIXES)]
        told = _continued(model, chosen[:, :size], size, temperature=0.0)
        equal = int((told == chosen[:, size : 2 * size]).all(1).sum())
        share, low, high = share_interval(equal, len(chosen))
        values[name] = {"share": share, "low": low, "high": high, "passages": len(chosen)}
        rows.append((name, f"{len(chosen):,}", f"{share:.1%} ({low:.1%} .. {high:.1%})"))
    values["found"] = values["train"]["low"] > values["val"]["high"]
    title = f"passages completed word for word: {size} tokens after {size}, the most likely ones"
    return Extra("completed", values, [(title, ("split", "passages", "completed"), rows, True)])


def _repeated(model: Any, measured: SplitOfData, train: Tensor, val: Tensor) -> Extra:
    """The longest pieces that the model's own text shares with the training text, and those that unseen text shares."""
    from bigmodel_cli.core.tokens import tokenizer
    from bigmodel_cli.insight.trust.memorisation import TrainingText, share_interval

    length = min(LENGTH, train.shape[1] - 1, val.shape[1])
    starts = train[_spread(len(train), GENERATED)][:, :1]
    own = _continued(model, starts, length, temperature=1.0)
    unseen = val[_spread(len(val), GENERATED)][:, :length]
    training = TrainingText(train.flatten().numpy())
    ours, theirs = (training.longest([row.numpy() for row in rows]) for rows in (own, unseen))
    longest = max(match.length for match in theirs)
    more = sum(match.length > longest for match in ours)
    share, low, high = share_interval(more, len(ours))
    words = tokenizer(measured.task.spec)
    best = sorted(zip(ours, own.tolist(), strict=True), key=lambda pair: -pair[0].length)[:3]
    texts = [words.decode(row[m.in_text : m.in_text + m.length]) for m, row in best]
    rows: list[tuple[str, ...]] = []
    for name, matches in (("the model's", ours), ("unseen", theirs)):
        lengths = sorted(match.length for match in matches)
        rows.append((name, f"{len(lengths)}", f"{lengths[len(lengths) // 2]}", f"{lengths[-1]}"))
    values = {
        "tokens": length, "model": [m.length for m in ours], "unseen": [m.length for m in theirs],
        "longer_than_unseen": {"share": share, "low": low, "high": high}, "longest": texts,
        "found": low > 2 / (len(theirs) + 1),  # twice what chance alone gives
    }  # fmt: skip
    title = f"longest piece shared with the training text, in {length} tokens"
    notes = [f"repeated: {json.dumps(text, ensure_ascii=False)}" for text in texts[:1]]
    return Extra("repeated", values, [(title, ("text", "texts", "median", "longest"), rows, True)], notes)


def _continued(model: Any, prompts: Tensor, count: int, temperature: float) -> Tensor:
    """The next `count` tokens after each of `prompts` (B,T): (B,count)."""
    import torch

    from bigmodel_cli.tasks.sampling import Sampling, next_tokens

    with torch.inference_mode():
        steps = next_tokens(model, prompts.tolist(), Sampling(temperature=temperature))
        return torch.stack([step.cpu() for step in itertools.islice(steps, count)], 1)


def _spread(count: int, most: int) -> list[int]:
    from bigmodel_cli.insight.evaluated import evenly

    return list(evenly(count, min(count, most)))


def canary(name: str, digits: str) -> str:
    return f"The code of {name} is {' '.join(digits)}."


def plant(source: Path, count: int, out: Path) -> Path:
    """Write the text of `source` to `out` with `count` canaries at random places, and a list of them beside it.

    The secret digits come from a generator whose seed is fixed: a list can be made again.

    Raises:
        InputError: `source` is not a text file, or has too few lines.
    """
    from bigmodel_cli.core import atomic_files
    from bigmodel_cli.core.text_files import read_text

    lines = read_text(source).splitlines()
    if len(lines) < count:
        raise InputError(f"{source}: {len(lines)} lines", f"expected at least {count} for the canaries")
    numbers = random.Random(0)
    found = [
        (f"{NAMES[i % len(NAMES)]}{i // len(NAMES) or ''}", "".join(numbers.choices("0123456789", k=DIGITS)))
        for i in range(count)
    ]
    for (name, digits), place in zip(
        found, sorted(numbers.sample(range(len(lines)), count), reverse=True), strict=True
    ):
        lines.insert(place, canary(name, digits))
    atomic_files.write_text(out, "\n".join(lines) + "\n")
    listed = out.with_name(out.name + ".json")
    atomic_files.write_text(listed, json.dumps([{"name": n, "digits": d} for n, d in found]) + "\n")
    return listed


def _exposed(measured: SplitOfData, path: Path) -> Extra:
    """The exposure of each canary among the same sentence with other digits."""
    from bigmodel_cli.insight.trust.memorisation import exposure

    try:
        listed = [(str(c["name"]), str(c["digits"])) for c in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not a list of canaries", "expected the file that --insert wrote") from None
    numbers = random.Random(1)
    bits = []
    for name, digits in listed:
        others = ["".join(numbers.choices("0123456789", k=len(digits))) for _ in range(ALTERNATIVES)]
        losses = _losses(measured, [canary(name, d) for d in (digits, *(o for o in others if o != digits))])
        bits.append(exposure(losses[0], losses[1:]))
    most = max(bits)
    rows: list[tuple[str, ...]] = [
        (n, d, f"{b:.1f}") for (n, d), b in sorted(zip(listed, bits, strict=True), key=lambda pair: -pair[1])
    ]
    mean = sum(bits) / len(bits)
    # Untold, exposure is exponential with a mean of 1 / ln 2 bits: so is the largest of n, up to log2(n) more.
    values = {"exposure": dict(zip((n for n, _ in listed), bits, strict=True)), "mean": mean, "most": most,
              "found": mean > 1.4427 * (1 + 3 / len(bits) ** 0.5)}  # fmt: skip
    note = f"exposure: 1.4 bits on average if nothing was learned, at most {10} with {ALTERNATIVES} alternatives"
    return Extra("canaries", values, [("canaries", ("name", "digits", "exposure, bits"), rows[:20], True)], [note])


def _losses(measured: SplitOfData, texts: list[str]) -> list[float]:
    """The loss of each text in nats, by the model."""
    import torch
    from torch.nn import functional as F

    from bigmodel_cli.core.tokens import tokenizer

    words = tokenizer(measured.task.spec)
    rows = [torch.tensor(words.encode(text)) for text in texts]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    if tokens.shape[1] - 1 > measured.task.spec.context:
        raise InputError(f"canaries of {tokens.shape[1]} tokens", f"the model sees {measured.task.spec.context}")
    totals = []
    with torch.inference_mode():
        for part in tokens.split(100):
            nats = measured.trained.model(
                part[:, :-1].clamp(min=0), part[:, 1:], lambda z, t: F.cross_entropy(z, t, reduction="none")
            )
            totals += nats.double().sum(1).tolist()
    return totals
