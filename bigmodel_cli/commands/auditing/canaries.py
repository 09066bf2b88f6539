"""Canaries for ``bigmodel audit``: planted secrets whose exposure tells what a model learned (Carlini et al. 2019)."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.auditing.text import LEVEL, AuditedModel
from bigmodel_cli.commands.evaluation.trust import Extra
from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

ALTERNATIVES = 999
"""Other secrets that each is ranked among."""
DIGITS = 6
TIMES = (1, 4, 16, 0)
"""How often canaries are inserted, in turn. One that is never inserted shows what chance gives."""
NAMES = ("Adair", "Benoit", "Calder", "Dunmore", "Eskil", "Farrow", "Gilroy", "Hallam", "Ingram", "Jarvis")
MOST_ROWS = 20


@dataclass(frozen=True)
class Canary:
    """A sentence with secret digits."""

    name: str
    digits: str

    @property
    def text(self) -> str:
        return f"The code of {self.name} is {' '.join(self.digits)}"


def plant(source: Path, count: int, out: Path) -> Path:
    """Write the text of `source` to `out` with `count` canaries in it, and a list of them beside it.

    They stand at random places of its first half, since its end validates a model by default. The secrets come
    from a generator whose seed is fixed, so that a list can be made again.

    Raises:
        InputError: `source` is no text file, or it is `out`.
    """
    from bigmodel_cli.core.files import atomic_files
    from bigmodel_cli.core.readers.text_files import AUTO, read_text

    if out.resolve() == source.resolve():
        raise InputError(f"--out {out}: it is DATA", "expected another file")
    lines = read_text(source, AUTO).split("\n")
    numbers = random.Random(0)
    listed, inserted = [], []
    for i in range(count):
        name, times = f"{NAMES[i % len(NAMES)]}{i // len(NAMES) or ''}", TIMES[i % len(TIMES)]
        canary = Canary(name, "".join(numbers.choices("0123456789", k=DIGITS)))
        listed.append({"name": canary.name, "digits": canary.digits, "inserted": times})
        inserted += [(numbers.randrange(len(lines) // 2 + 1), canary.text) for _ in range(times)]
    for place, text in sorted(inserted, reverse=True):
        lines.insert(place, text)
    atomic_files.write_text(out, "\n".join(lines))
    beside = out.with_name(out.name + ".json")
    atomic_files.write_text(beside, json.dumps(listed, indent=1) + "\n")
    return beside


def _read(path: Path) -> list[Canary]:
    try:
        found = [Canary(str(c["name"]), str(c["digits"])) for c in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        found = []
    if not found or not all(canary.digits.isdecimal() and canary.digits.isascii() for canary in found):
        raise InputError(f"{path}: no list of canaries", "expected the file that --insert wrote beside --out")
    return found


def exposed(audited: AuditedModel, path: Path) -> Extra:
    """The exposure of each canary among the same sentence with other digits.

    Raises:
        InputError: `path` is no list of canaries, or the model knows the characters of none.
    """
    from bigmodel_cli.insight.trust.memorisation import exposure, p_of_exposures

    listed = _read(path)
    known = [canary for canary in listed if _can_encode(audited, canary.text)]
    if not known:
        raise InputError(f"{path}: characters that the model does not know", "expected canaries of its training text")
    alphabet = [digit for digit in "0123456789" if _can_encode(audited, digit)]
    times = _occurrences(audited, known)
    numbers = random.Random(1)
    bits = []
    for canary in known:
        drawn = {"".join(numbers.choices(alphabet, k=len(canary.digits))) for _ in range(ALTERNATIVES)}
        others = [Canary(canary.name, digits).text for digits in sorted(drawn - {canary.digits})]
        losses = _losses(audited, [canary.text, *others])
        bits.append(exposure(losses[0], losses[1:]))
    learned = [b for b, n in zip(bits, times, strict=True) if n]
    p = p_of_exposures(learned) if learned else None
    found = [{"name": c.name, "in_training_text": n, "exposure": b} for c, n, b in zip(known, times, bits, strict=True)]
    values = {"canaries": found, "p": p, "found": p is not None and p < LEVEL}
    notes = ["exposure of a canary that was not learned: 1.4 bits on average"]
    missing = [canary.name for canary in listed if canary not in known]
    notes += [f"canaries with characters that the model does not know: {', '.join(missing)}"] if missing else []
    notes += [] if learned else ["none of the canaries is in the train split"]
    told = "" if p is None else f"; p {p:.2g}"
    ranked = sorted(found, key=lambda f: -float(str(f["exposure"])))[:MOST_ROWS]
    rows: list[tuple[str, ...]] = [(str(f["name"]), f"{f['in_training_text']}", f"{f['exposure']:.1f}") for f in ranked]
    columns = ("name", "times in the training text", "exposure, bits")
    return Extra("canaries", values, [(f"canaries{told}", columns, rows, True)], notes)


def _can_encode(audited: AuditedModel, text: str) -> bool:
    try:
        return bool(audited.measured.task.encode_prompt(text))
    except InputError:
        return False


def _occurrences(audited: AuditedModel, canaries: list[Canary]) -> list[int]:
    """How often each canary is in the training text as the model reads it: some may have come into val."""
    from bigmodel_cli.core.tokenizers.tokens import tokenizer

    words = tokenizer(audited.measured.task.spec)
    whole = "".join(words.decode([i for i in block.tolist() if i >= 0]) for block in audited.blocks())
    return [whole.count(words.decode(list(words.encode(canary.text)))) for canary in canaries]


def _losses(audited: AuditedModel, texts: list[str]) -> list[float]:
    """The loss of each text in nats. Of texts longer than the context, all of which begin alike, the end counts."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    task, most = audited.measured.task, int(audited.model.context) + 1
    rows = [torch.tensor(task.encode_prompt(text)[-most:]) for text in texts]
    totals: list[Tensor] = []
    with torch.inference_mode(), audited.placement.autocast():
        for part in pad_sequence(rows, batch_first=True, padding_value=-100).split(100):
            batch: dict[str, Any] = {"tokens": part[:, :-1].clamp(min=0), "targets": part[:, 1:]}
            batch = audited.placement.batch({**batch, "index": torch.arange(len(part))})
            totals.append(task.outputs(audited.model, batch)["nats"].double().cpu())
    return torch.cat(totals).tolist()  # type: ignore[no-any-return]
