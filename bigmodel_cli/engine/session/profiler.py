"""``--profile``: record a Chrome trace of a few steps, labelled with the timer's phases."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.engine.training.run import Run

WAIT, WARM, STEPS = 3, 2, 8  # steps skipped, profiler warm-up steps, steps recorded


@contextlib.contextmanager
def profiled(run: Run, path: Path) -> Iterator[Callable[[], None]]:
    """Record STEPS steps of `run` to `path`, for Perfetto or chrome://tracing, if ``train.profile`` is set.

    Yields a function to call after each step. A run that is too short to skip and warm up is recorded
    from its first step.
    """
    if not run.recipe.train.profile:
        yield lambda: None
        return
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if run.placement.device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    remaining = run.total_steps - run.progress.step
    wait, warm = (WAIT, WARM) if remaining >= WAIT + WARM + STEPS else (0, 0)
    schedule = torch.profiler.schedule(wait=wait, warmup=warm, active=min(STEPS, max(remaining, 1)), repeat=1)
    temporary = atomic_files.temporary_name(path)
    with (
        torch.profiler.profile(
            activities=kinds, schedule=schedule, on_trace_ready=lambda p: p.export_chrome_trace(str(temporary))
        ) as profiler,
        run.timer.labelled(torch.profiler.record_function),
    ):
        yield profiler.step
    if temporary.exists():
        temporary.replace(path)
        run.emit({"event": "warning", "message": f"trace of {min(STEPS, max(remaining, 1))} steps in {path}"})
