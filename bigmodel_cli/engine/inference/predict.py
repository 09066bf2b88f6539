"""What a model says of files: read in parallel ahead of it, answered in batches, told in their order."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.tasks import EncodesTexts, Predictions, Predicts
from bigmodel_cli.core.types import Batch, Task
from bigmodel_cli.data.thread_map import decoder_pool
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.inference.batch_size import max_batch_size
from bigmodel_cli.engine.inference.optimize import Optimized, optimize_for_inference

MOST = 64  # samples in a batch
WINDOW, HELD = 1024, 1 << 26  # samples and bytes that come while one waits for others of its shape, at most
Reading = tuple[str, Batch | InputError]


def predict_files(
    model: nn.Module, task: Predicts, placement: Placement, files: Sequence[Path], top: int, texts: Sequence[str] = ()
) -> Iterator[tuple[str, Predictions | InputError]]:
    """Each of `texts`, then each sample of `files`, by name, with its `top` answers; or what is wrong with it.

    `texts` are for a task that :class:`EncodesTexts`.
    """
    size = min(MOST, max_batch_size(task, placement))
    known: dict[int, tuple[str, Predictions | InputError]] = {}  # told when all before them are
    told = 0
    for places, names, batch in _batches(
        itertools.chain(_encoded(task, texts), _readings(task, files, ahead=2 * size)), size
    ):
        if isinstance(batch, InputError):
            known[places[0]] = names[0], batch
        else:
            with torch.inference_mode(), placement.autocast():
                inputs = placement.inputs(task.prepare(placement.batch(batch)))
                known.update(zip(places, zip(names, task.predict(model, inputs, top), strict=True), strict=True))
        while told in known:
            yield known.pop(told)
            told += 1


def _encoded(task: Task, texts: Sequence[str]) -> Iterator[Reading]:
    for i, text in enumerate(texts, 1):
        assert isinstance(task, EncodesTexts)
        yield f"text {i}", task.encode_texts([text])


def optimize_for_files(
    model: nn.Module, task: Predicts, placement: Placement, files: Sequence[Path], allow_low_precision: bool
) -> Optimized:
    """The quickest agreeing form of `model` for as many samples as there are `files`, chosen on some from all of them.

    As it is where that would take longer than to answer, and where it has no convolutions to make quicker.
    """
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return Optimized(model, placement)
    few = min(len(files), max(1, max_batch_size(task, placement) // 2), MOST // 2)
    raws: list[Batch] = []
    for file in [files[i * len(files) // few] for i in range(few)] if few > 1 else []:
        with contextlib.suppress(InputError):  # told when it is asked
            raws += [raw for _, raw in itertools.islice(task.read_file(file), 1)]
    shapes = {tuple((k, v.shape[1:]) for k, v in raw.items()) for raw in raws}
    if len(shapes) != 1:  # nothing that could be read, or images of several sizes
        return Optimized(model, placement)
    joined = {key: torch.cat([raw[key] for raw in raws]) for key in raws[0]}
    look = placement.inputs(task.prepare(placement.batch(joined)))
    return optimize_for_inference(model, task.outputs, placement, look, len(files), allow_low_precision)


def _readings(task: Predicts, files: Sequence[Path], ahead: int) -> Iterator[Reading]:
    """The samples of `files`, at most `ahead` files being read or waiting; one that cannot be read is its error."""

    def read(file: Path) -> list[Reading]:
        found: list[Reading] = []
        try:
            found.extend(task.read_file(file))
        except InputError as error:
            found.append((str(file), error))
        return found

    waiting: deque[Future[list[Reading]]] = deque()
    remaining = iter(files)
    pool = decoder_pool()
    try:
        waiting.extend(pool.submit(read, file) for file in itertools.islice(remaining, ahead))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(pool.submit(read, file) for file in itertools.islice(remaining, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(readings: Iterator[Reading], size: int) -> Iterator[tuple[list[int], list[str], Batch | InputError]]:
    """Up to `size` samples of one shape together, with their places among all; an error by itself.

    Texts of one length need no fill, so what else is asked changes no answer.
    """
    waiting: dict[Any, list[tuple[int, str, Batch]]] = {}  # by shape; in front the one that has waited longest
    held = 0

    def together(shape: Any) -> tuple[list[int], list[str], Batch]:
        nonlocal held
        places, names, raws = zip(*waiting.pop(shape), strict=True)
        joined = {key: torch.cat([raw[key] for raw in raws]) for key in raws[0]}
        held -= _bytes(joined)
        return list(places), list(names), joined

    for place, (name, raw) in enumerate(readings):
        if isinstance(raw, InputError):
            yield [place], [name], raw
        else:
            shape = tuple((key, value.shape[1:]) for key, value in raw.items())
            waiting.setdefault(shape, []).append((place, name, raw))
            held += _bytes(raw)
            if len(waiting[shape]) == size:
                yield together(shape)
        while waiting and (held > HELD or next(iter(waiting.values()))[0][0] <= place - WINDOW):
            yield together(next(iter(waiting)))
    while waiting:
        yield together(next(iter(waiting)))


def _bytes(raw: Batch) -> int:
    return sum(value.nbytes for value in raw.values())
