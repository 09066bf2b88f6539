"""``--profile``: a Chrome trace of a few steps, the parts of the timer by name in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bigmodel_cli.engine.training.run import Run

WAIT, WARM, STEPS = 3, 2, 8  # steps left out, steps that warm the profiler up, steps recorded


@contextlib.contextmanager
def profiled(run: Run, path: Path) -> Iterator[Callable[[], None]]:
    """Where the recipe says so, record STEPS steps of `run` into `path`, for Perfetto or chrome://tracing.

    Yields what is to be called after each step. A run of fewer steps than it takes to get there is recorded as far
    as it went.
    """
    if not run.recipe.train.profile:
        yield lambda: None
        return
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if run.placement.device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    left = run.total_steps - run.progress.step
    wait, warm = (WAIT, WARM) if left >= WAIT + WARM + STEPS else (0, 0)
    plan = torch.profiler.schedule(wait=wait, warmup=warm, active=min(STEPS, max(left, 1)), repeat=1)
    draft = path.with_name(f".{path.name}.tmp")
    with (
        torch.profiler.profile(
            activities=kinds, schedule=plan, on_trace_ready=lambda p: p.export_chrome_trace(str(draft))
        ) as profiler,
        run.timer.labelled(torch.profiler.record_function),
    ):
        yield profiler.step
    if draft.exists():
        draft.replace(path)
        run.emit({"event": "warning", "message": f"trace of {min(STEPS, max(left, 1))} steps in {path}"})
