"""THE training loop. It knows no model, data set or task by name."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from bigmodel_cli.core.errors import DivergedError, MachineError
from bigmodel_cli.core.types import Batch, SampleKey
from bigmodel_cli.data.batches import micro_batches
from bigmodel_cli.engine.device.placement import is_out_of_memory
from bigmodel_cli.engine.training.evaluate import evaluate
from bigmodel_cli.engine.training.run import Run, StepResult

MIN_LR_SCALE = 1 / 8  # a run that was halved three times and diverges again needs a person


def every(n: int | None, step: int) -> bool:
    return n is not None and step % n == 0


def fit(run: Run, after_step: Callable[[], None] = lambda: None) -> bool:
    """Train until the last step, early stopping or a signal. True where it ended by itself.

    `after_step` is called after each step, as a profiler wants.

    Raises:
        DivergedError: a loss or gradient is not finite; the step was not taken.
        MachineError: out of memory with one sample a micro-batch.
    """
    while run.progress.step < run.total_steps and not _out_of_patience(run):
        try:
            rate = _epoch(run, after_step)
        except RolledBack:
            continue
        if run.should_stop() or not end_epoch(run, rate):
            _save(run, False)
            return False
    return True


def _epoch(run: Run, after_step: Callable[[], None]) -> float:
    """The rest of the epoch, or as far as a signal lets it go; the task's units a second."""
    train, progress = run.recipe.train, run.progress
    run.train_mode()
    clock, first = time.perf_counter(), progress.loss_count
    for raw in run.timer.waiting("data", run.batches.steps(progress.epoch, progress.batch_in_epoch)):
        run.pending_steps.append(train_step(run, raw))
        progress.step += 1
        progress.samples_seen += run.batches.size(progress.batch_in_epoch)
        progress.batch_in_epoch += 1
        settle(run, leave=run.placement.lag)
        after_step()
        if every(train.save_steps, progress.step):
            _save(run, False)
        if progress.step == run.total_steps or run.should_stop():
            break
    settle(run)
    return (progress.loss_count - first) / (time.perf_counter() - clock)


def train_step(run: Run, raw: Batch) -> StepResult:
    """One optimizer step on this rank's part of the batch, not taken where the loss or gradient is not finite.

    Where memory runs out, the micro-batch is halved for good and the step is done
    again with more accumulation: the effective batch stays what the recipe says.
    """
    run.set_lr()
    run.timer.steps += 1
    kept = [b.clone() for b in run.model.buffers()] if run.recipe.train.skip_nonfinite else []
    count = int(run.parallel.global_count(run.task.count(raw)))
    while (total := _gradients(run, raw, count)) is None:
        _halve(run)
    with run.timer("optimizer"):
        parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = run.parallel.gather_full(torch.nn.utils.get_total_norm(grads))
        if run.recipe.train.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, run.recipe.train.clip_norm, norm)
        finite = torch.isfinite(norm + total)
        for before, now in zip(kept, run.model.buffers(), strict=False):  # BatchNorm has averaged a NaN in by now
            now.copy_(torch.where(finite, now, before))
        _update(run, finite)
    return StepResult(total, norm, finite, count)


def _gradients(run: Run, raw: Batch, count: int) -> Tensor | None:
    """Leave the mean gradient over `count` units of all ranks; the sum of their losses. None: memory ran out."""
    train, task, place, timer = run.recipe.train, run.task, run.placement, run.timer
    total = torch.zeros((), device=place.device)
    num_micro_batches = run.parallel.num_micro_batches(
        max(run.recovery.num_micro_batches, train.accumulate), run.batches.size(run.progress.batch_in_epoch)
    )
    short = False
    try:
        for micro, last in micro_batches(place.batch(raw), num_micro_batches):
            with timer("prepare"):
                key = SampleKey(train.seed, run.progress.epoch, micro["index"])
                micro = place.inputs(task.prepare(micro, key))
            with run.parallel.syncing(last):
                with timer("forward"), place.autocast():
                    loss = task.loss(run.forward, micro).total
                with timer("backward"):
                    loss.backward(
                        torch.full_like(loss, run.parallel.gradient_divisor / count)
                    )  # of the mean over all units
                    total += loss.detach()
    except RuntimeError as error:  # OutOfMemoryError on CUDA, a plain RuntimeError from the CPU allocator
        if not is_out_of_memory(error):
            raise
        short = True
    return None if run.parallel.out_of_memory(short) else run.parallel.all_reduce(total)


def _halve(run: Run) -> None:
    """Twice as many micro-batches from here on.

    Raises:
        MachineError: there is one sample in each.
    """
    size, recovery = run.batches.size(run.progress.batch_in_epoch), run.recovery
    if size // run.batches.shards // recovery.num_micro_batches <= 1:
        hint = "a smaller model, --precision bf16, or a machine with more memory"
        raise MachineError("out of memory at micro-batch 1", hint=hint)
    recovery.num_micro_batches *= 2
    run.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    micro = -(-size // run.batches.shards // recovery.num_micro_batches)
    message = f"out of memory: micro-batch {micro} x {recovery.num_micro_batches} accumulated; the batch stays {size}"
    run.emit({"event": "warning", "message": message})


def _update(run: Run, finite: Tensor) -> None:
    """Step where `finite` (a bool on the device) says so; without a wait where the optimizer can skip by itself."""
    if run.placement.lag and hasattr(run.optimizer, "_step_supports_amp_scaling"):
        # What GradScaler does: a fused kernel reads the flag on the device and leaves every tensor as it is.
        run.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        run.optimizer.step()
        del run.optimizer.found_inf  # type: ignore[attr-defined]
        taken = True
    else:
        taken = bool(finite)  # free on a CPU; on CUDA the optimizers that are not fused pay some 20 us for it
        if taken:
            run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.ema is not None and taken:
        run.ema.update_parameters(run.model)


def settle(run: Run, leave: int = 0) -> None:
    """Read what the steps taken gave, all but the last `leave`, which the device may still be at.

    Raises:
        DivergedError: a step was not finite.
    """
    while len(run.pending_steps) > leave:
        step = run.progress.step - len(run.pending_steps) + 1
        taken = run.pending_steps.popleft()
        loss = taken.loss.item()
        if not taken.finite.item():
            _not_finite(run, f"step {step}: loss {loss / taken.count:g}, gradient norm {taken.norm.item():g}")
            continue
        run.recovery.bad_steps = 0
        run.progress.loss_sum += loss
        run.progress.loss_count += taken.count
        event = {"event": "step", "step": step, "epoch": run.progress.epoch + 1, "loss": loss / taken.count}
        run.emit({**event, "count": taken.count})


class RolledBack(Exception):
    """The run goes on from its last checkpoint."""


def _not_finite(run: Run, what: str) -> None:
    """Stop; or, where the recipe allows some bad steps in a row, count this one, and after them go back.

    Going back halves the learning rate: the same steps at the same rate would end the same.

    Raises:
        DivergedError: the default; or nothing to go back to; or three times back already.
        RolledBack: the run stands at its last checkpoint.
    """
    run.recovery.bad_steps += 1
    if run.recovery.bad_steps <= run.recipe.train.skip_nonfinite:
        run.emit({"event": "warning", "message": f"{what}: step not taken"})
        return
    run.pending_steps.clear()
    scale = run.progress.lr_scale / 2
    if not run.recipe.train.skip_nonfinite or scale < MIN_LR_SCALE or not run.hooks.roll_back(run):
        hint = "a lower --lr, a longer warm-up, or --set train.clip_norm=1"
        raise DivergedError(what, "both must be finite", hint)
    run.progress.lr_scale, run.recovery.bad_steps = scale, 0
    message = f"{what}: back to step {run.progress.step}, learning rate times {scale:g} from here"
    run.emit({"event": "warning", "message": message})
    raise RolledBack


def _save(run: Run, best: bool) -> None:
    settle(run)
    with run.timer("saving"):
        run.hooks.save(run, best)


def end_epoch(run: Run, rate: float) -> bool:
    """Evaluate, report and save. False where a signal stopped the evaluation."""
    train, progress = run.recipe.train, run.progress
    last = progress.step == run.total_steps
    event = {
        "event": "epoch",
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "train_loss": progress.loss_sum / max(progress.loss_count, 1),
        "lr": run.lr,
        f"{run.task.unit}_per_second": rate,
    }
    if run.parallel.group.world > 1:
        event["straggler"] = run.parallel.straggler(run.timer.own())
    best = False
    if last or every(train.eval_epochs, progress.epoch + 1):
        run.emit({"event": "evaluating"})
        with run.timer("evaluation"):
            run.parallel.average_buffers(run)
            size, group = train.eval_batch_size, run.parallel.group
            metrics = evaluate(run.eval_model, run.task, run.val, run.placement, size, run.should_stop, group)
        if metrics is None:
            return False
        best = _is_best(run, metrics)
        event |= {f"val_{k}": v for k, v in metrics.items()} | {"best": best}
    progress.epoch += 1
    progress.batch_in_epoch = progress.loss_count = 0
    progress.loss_sum = 0.0
    run.emit(event)  # first: what a resumed run finds past its checkpoint it drops, what is missing it cannot know
    _save(run, best)
    return True


def _is_best(run: Run, metrics: dict[str, float]) -> bool:
    """Better by the task's metric; on a small val split, where epochs tie, the lower loss decides."""
    name, mode = run.task.best
    progress, value = run.progress, metrics[name]
    sign = 1 if mode == "max" else -1
    old = (-float("inf") if progress.best_metric is None else sign * progress.best_metric, -progress.best_loss)
    if (sign * value, -metrics["loss"]) <= old:
        return False
    progress.best_metric, progress.best_loss, progress.best_epoch = value, metrics["loss"], progress.epoch + 1
    return True


def _out_of_patience(run: Run) -> bool:
    patience = run.recipe.train.patience
    return patience is not None and run.progress.epoch - run.progress.best_epoch >= patience
