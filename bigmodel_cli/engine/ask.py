"""What a model says of files: read in parallel ahead of it, answered in batches, told in their order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.types import Batch
from bigmodel_cli.data.in_parallel import decoders
from bigmodel_cli.engine.evaluate import room
from bigmodel_cli.engine.placement import Placement

MOST = 64  # samples in a batch
Reading = tuple[str, Batch | InputError]
Answer = list[tuple[str, float]]


def ask(
    model: nn.Module, task: Any, placement: Placement, files: Sequence[Path], top: int, texts: Sequence[str] = ()
) -> Iterator[tuple[str, Answer | InputError]]:
    """Each of `texts`, then each sample of `files`, by name, with its `top` answers; or what is wrong with it."""
    size = min(MOST, room(task, placement))
    given = ((f"text {i}", task.asked([text])) for i, text in enumerate(texts, 1))
    for names, batch in _batches(itertools.chain(given, _readings(task, files, ahead=2 * size)), size):
        if isinstance(batch, InputError):
            yield names[0], batch
            continue
        with torch.inference_mode(), placement.autocast():
            inputs = placement.inputs(task.prepare(placement.batch(batch)))
            yield from zip(names, task.answers(model, inputs, top), strict=True)


def _readings(task: Any, files: Sequence[Path], ahead: int) -> Iterator[Reading]:
    """The samples of `files`, at most `ahead` files being read or waiting; one that cannot be read is its error."""

    def read(file: Path) -> list[Reading]:
        found: list[Reading] = []
        try:
            found.extend(task.readings(file))
        except InputError as error:
            found.append((str(file), error))
        return found

    waiting: deque[Future[list[Reading]]] = deque()
    remaining = iter(files)
    pool = decoders()
    try:
        waiting.extend(pool.submit(read, file) for file in itertools.islice(remaining, ahead))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(pool.submit(read, file) for file in itertools.islice(remaining, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(readings: Iterator[Reading], size: int) -> Iterator[tuple[list[str], Batch | InputError]]:
    """Neighbours of one shape together, up to `size`; an error by itself."""
    for kind, group in itertools.groupby(readings, key=lambda reading: _shape(reading[1])):
        while part := list(itertools.islice(group, size)):
            names, raws = [name for name, _ in part], [raw for _, raw in part]
            if kind is None:
                yield from (([name], raw) for name, raw in part)
            else:
                yield names, {key: torch.cat([raw[key] for raw in raws]) for key in raws[0]}  # type: ignore[index,union-attr]


def _shape(raw: Batch | InputError) -> tuple[Any, ...] | None:
    return None if isinstance(raw, InputError) else tuple((key, value.shape[1:]) for key, value in raw.items())
