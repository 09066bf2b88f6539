"""Models whose weights are computed from the train split as a whole, in place of optimizer steps."""

from __future__ import annotations

import time

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.interactions import SolvedFromData
from bigmodel_cli.engine.device.device_cache import on_host
from bigmodel_cli.engine.training.loop import end_epoch
from bigmodel_cli.engine.training.run import Run


def solve_model(run: Run) -> bool:
    """Solve for the weights, then evaluate and save as after an epoch. Return False if a signal stopped it.

    Raises:
        InputError: several processes, which would each solve the same.
    """
    if run.progress.epoch:  # resumed after it had finished
        return True
    if run.parallel.group.world > 1:
        raise InputError(f"{run.recipe.model.name} is solved in one process", hint="without --nproc")
    assert isinstance(run.model, SolvedFromData)
    started, source = time.perf_counter(), on_host(run.batches.source)
    with run.timer("start"):
        run.model.cpu()
        note = run.model.solve(source)
        run.model.to(run.placement.device)
    if run.ema is not None:
        run.ema.module.load_state_dict(run.model.state_dict())
    run.emit({"event": "warning", "message": note})
    return end_epoch(run, len(source) / (time.perf_counter() - started))
