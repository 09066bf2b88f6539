"""Measure where a run spends its time, and advise what would speed it up."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
Label = Callable[[str], contextlib.AbstractContextManager[Any]]
SAMPLED = 50  # on a GPU, time every 50th step only: timing a phase requires a synchronization
STEP_PARTS = ("prepare", "forward", "backward", "optimizer")
OWN_PARTS = ("data", "prepare", "forward")  # without backward, where ranks wait for each other
ADVICE = {
    "data": "data.cache, a simpler augmentation or more cores",
    "prepare": "a simpler augmentation",
    "forward": "a smaller model or input, or a faster device",
    "backward": "a smaller model or input, or a faster device",
    "optimizer": "a larger batch",
    "saving": "saving less often: train.save_steps, train.eval_epochs",
    "evaluation": "evaluating less often: train.eval_epochs",
    "features": "a smaller backbone, or --precision bf16",
    "solving": "fewer samples, or --epochs, which trains the head in steps",
    "start": "nothing: the run is short",
}


class Timed(contextlib.AbstractContextManager[None]):
    """Adds the time spent inside to `seconds[part]`. A class, because a generator is several times slower."""

    def __init__(self, seconds: dict[str, float], part: str) -> None:
        self.seconds, self.part = seconds, part

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.part] += time.perf_counter() - self.started


class Timer:
    """Adds up seconds by phase: ``with timer("forward"): ...``. Costs about a microsecond per call.

    `wait` blocks until the device is idle. None for a synchronous device (a CPU).
    """

    def __init__(self, wait: Callable[[], None] | None = None) -> None:
        self.wait = wait
        self._label: Label | None = None
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps = 0
        self._own = 0.0

    @contextlib.contextmanager
    def labelled(self, label: Label) -> Iterator[None]:
        """While active, enter ``label(part)`` around each phase, for example to name it in a trace."""
        self._label = label
        try:
            yield
        finally:
            self._label = None

    def __call__(self, part: str) -> contextlib.AbstractContextManager[None]:
        timed = self._sampled(part) if self.wait is not None and part in STEP_PARTS else Timed(self.seconds, part)
        return timed if self._label is None else self._named(part, timed)

    @contextlib.contextmanager
    def _named(self, part: str, timed: contextlib.AbstractContextManager[None]) -> Iterator[None]:
        assert self._label is not None
        with self._label(part), timed:
            yield

    @contextlib.contextmanager
    def _sampled(self, part: str) -> Iterator[None]:
        assert self.wait is not None
        if self.steps % SAMPLED:
            yield
            return
        self.wait()
        started = time.perf_counter()
        try:
            yield
        finally:
            self.wait()
            self.seconds[part] += (time.perf_counter() - started) * SAMPLED

    def waiting(self, part: str, items: Iterable[T]) -> Iterator[T]:
        """Iterate over `items`, and count the time spent waiting for each one as `part`."""
        iterator = iter(items)
        while True:
            with self(part):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def own(self) -> float:
        """Return the seconds since the last call spent on this process's own work, without waiting for others."""
        now = sum(self.seconds[part] for part in OWN_PARTS)
        spent, self._own = now - self._own, now
        return spent

    def shares(self) -> dict[str, float]:
        """Return each phase's fraction of the total time, largest first."""
        total = sum(self.seconds.values())
        ordered = sorted(self.seconds.items(), key=lambda pair: -pair[1])
        return {part: seconds / total for part, seconds in ordered} if total else {}

    def verdict(self) -> str:
        """Summarize in one line where the time went and what would help most. Empty if nothing was timed."""
        shares = self.shares()
        if not shares:
            return ""
        parts = ", ".join(f"{part} {share:.0%}" for part, share in shares.items() if share >= 0.005)
        computing = shares.get("forward", 0) + shares.get("backward", 0)
        worst = next(iter(shares)) if computing < 0.5 else "backward"
        return f"time: {parts}; what would help: {ADVICE[worst]}"
