"""Predictions for files, which are read ahead in parallel, batched by shape, and yielded in order."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.text_samples import AS_FOUND, Reading, TextTooLongError, require_short
from bigmodel_cli.core.tasks import CUT, EMPTY, EncodesTexts, Generates, Predictions, Predicts
from bigmodel_cli.core.types import Batch, Task
from bigmodel_cli.data.thread_map import decoder_pool
from bigmodel_cli.engine.device.placement import Placement
from bigmodel_cli.engine.inference.batch_size import max_batch_size
from bigmodel_cli.engine.inference.optimize import Optimized, optimize_for_inference

MAX_BATCH = 64  # samples in a batch
MAX_PENDING = 1024  # samples read while one waits for others of its shape
MAX_PENDING_BYTES = 1 << 26  # of all samples that wait
Sample = tuple[str, Batch | InputError]
Chunk = tuple[list[Sample], "Callable[[], Chunk] | None"]
"""Samples of a file, and what reads the next ones; None after its last."""


def predict_files(
    model: nn.Module,
    task: Predicts,
    placement: Placement,
    files: Sequence[Path],
    top: int,
    texts: Iterable[str] = (),
    how: Reading = AS_FOUND,
    notes: list[str] | None = None,
) -> Iterator[tuple[str, Predictions | InputError]]:
    """The name and the `top` predictions of each of `texts`, then of each sample in `files`; or its error.

    `texts` are for a task that :class:`EncodesTexts`; `how` says how `files` are read. Both are read as they are
    predicted, so that they may be larger than memory. What a person should know is added to `notes` at the end.
    """
    size = min(MAX_BATCH, max_batch_size(task, placement))
    ready: dict[int, tuple[str, Predictions | InputError]] = {}  # waiting for the samples before them
    next_index = cut = empty = 0
    for indices, names, batch in _batches(
        itertools.chain(_encoded(task, texts), _samples(task, files, how, ahead=2 * size)), size
    ):
        if isinstance(batch, InputError):
            ready[indices[0]] = names[0], batch
        else:
            cut += int(batch[CUT].sum()) if CUT in batch else 0
            empty += int(batch[EMPTY].sum()) if EMPTY in batch else 0
            with torch.inference_mode(), placement.autocast():
                inputs = placement.inputs(task.prepare(placement.batch(batch)))
                ready.update(zip(indices, zip(names, task.predict(model, inputs, top), strict=True), strict=True))
        while next_index in ready:
            yield ready.pop(next_index)
            next_index += 1
    if cut and notes is not None:
        notes.append(cut_note(cut, next_index, task))
    if empty and notes is not None:
        notes.append(f"{empty:,} of {next_index:,} texts are empty: an answer for one says nothing")


def cut_note(cut: int, total: int, task: Task) -> str:
    """A line that `cut` of `total` texts are longer than the context of the model: the end of a prompt is kept."""
    longer = f"{cut:,} of {total:,} texts are longer than the model's {task.spec.context} tokens"
    return f"{longer}; only their ends are used" if isinstance(task, Generates) else f"{longer}, and cut there"


def _encoded(task: Task, texts: Iterable[str]) -> Iterator[Sample]:
    """Each of `texts` as a raw batch of one, or why it is none; what cannot be read ends them."""
    remaining = enumerate(texts, 1)
    name = "text 1"
    while True:
        try:
            if (following := next(remaining, None)) is None:
                return
        except InputError as error:
            yield name, error
            return
        name = f"text {following[0]}"
        assert isinstance(task, EncodesTexts)
        try:
            yield name, task.encode_texts([require_short(name, following[1])[1]])
        except TextTooLongError as error:
            yield name, error


def optimize_for_files(
    model: nn.Module, task: Predicts, placement: Placement, files: Sequence[Path], allow_low_precision: bool
) -> Optimized:
    """The fastest equivalent form of `model` for as many samples as `files`, chosen on a sample of them.

    `model` is returned as it is where it has no convolutions to optimize, or where choosing would take longer
    than predicting.
    """
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return Optimized(model, placement)
    count = min(len(files), max(1, max_batch_size(task, placement) // 2), MAX_BATCH // 2)
    samples: list[Batch] = []
    for file in [files[i * len(files) // count] for i in range(count)] if count > 1 else []:
        with contextlib.suppress(InputError):  # reported when it is predicted
            samples += [sample for _, sample in itertools.islice(task.read_file(file), 1)]
    shapes = {tuple((k, v.shape[1:]) for k, v in sample.items()) for sample in samples}
    if len(shapes) != 1:  # no readable file, or images of several sizes
        return Optimized(model, placement)
    joined = {key: torch.cat([sample[key] for sample in samples]) for key in samples[0]}
    sample_batch = placement.inputs(task.prepare(placement.batch(joined)))
    return optimize_for_inference(model, task.outputs, placement, sample_batch, len(files), allow_low_precision)


def _samples(task: Predicts, files: Sequence[Path], how: Reading, ahead: int) -> Iterator[Sample]:
    """The samples of `files`, or the error of a file, with at most `ahead` files being read or waiting."""

    def read(file: Path, samples: Iterator[Sample]) -> Chunk:
        """The next samples of `file`, and what reads those after them."""
        found: list[Sample] = []
        try:
            found.extend(itertools.islice(samples, MAX_BATCH))
        except InputError as error:
            return [*found, (str(file), error)], None
        return found, functools.partial(read, file, samples) if len(found) == MAX_BATCH else None

    pending: deque[Future[Chunk]] = deque()
    remaining = (functools.partial(read, file, iter(task.read_file(file, how))) for file in files)
    pool = decoder_pool()
    try:
        pending.extend(map(pool.submit, itertools.islice(remaining, ahead)))
        while pending:
            found, rest = pending.popleft().result()
            if rest is not None:
                pending.appendleft(pool.submit(rest))  # read while those before it are predicted
            else:
                pending.extend(map(pool.submit, itertools.islice(remaining, 1)))
            yield from found
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(readings: Iterator[Sample], size: int) -> Iterator[tuple[list[int], list[str], Batch | InputError]]:
    """Batches of up to `size` samples of one shape, with their indices among all samples; errors by themselves.

    Texts of one length need no padding, so that no prediction depends on the other samples.
    """
    pending: dict[Any, list[tuple[int, str, Batch]]] = {}  # by shape, the oldest sample first
    held_bytes = 0

    def take_batch(shape: Any) -> tuple[list[int], list[str], Batch]:
        nonlocal held_bytes
        indices, names, samples = zip(*pending.pop(shape), strict=True)
        joined = {key: torch.cat([sample[key] for sample in samples]) for key in samples[0]}
        held_bytes -= _bytes(joined)
        return list(indices), list(names), joined

    for index, (name, sample) in enumerate(readings):
        if isinstance(sample, InputError):
            yield [index], [name], sample
        else:
            shape = tuple((key, value.shape[1:]) for key, value in sample.items())
            pending.setdefault(shape, []).append((index, name, sample))
            held_bytes += _bytes(sample)
            if len(pending[shape]) == size:
                yield take_batch(shape)
        while pending and (held_bytes > MAX_PENDING_BYTES or next(iter(pending.values()))[0][0] <= index - MAX_PENDING):
            yield take_batch(next(iter(pending)))
    while pending:
        yield take_batch(next(iter(pending)))


def _bytes(sample: Batch) -> int:
    return sum(value.nbytes for value in sample.values())
