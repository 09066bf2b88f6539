"""The training loop. It does not depend on any particular model, data set or task."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from bigmodel_cli.core.answering import FitsToVal
from bigmodel_cli.core.errors import DivergedError, MachineError
from bigmodel_cli.core.types import Batch, SampleKey
from bigmodel_cli.data.batches import micro_batches
from bigmodel_cli.engine.device.placement import is_out_of_memory
from bigmodel_cli.engine.training.best_epoch import is_best
from bigmodel_cli.engine.training.evaluate import evaluate, split_outputs
from bigmodel_cli.engine.training.gradients import clip_gradients, gradient_values
from bigmodel_cli.engine.training.lone_samples import is_lone_sample
from bigmodel_cli.engine.training.run import Run, StepResult
from bigmodel_cli.engine.training.running_statistics import begun_by_first_batch

MIN_LR_SCALE = 1 / 8  # after three halvings, a run that still diverges needs the user


def every(n: int | None, step: int) -> bool:
    return n is not None and step % n == 0


def fit(run: Run, after_step: Callable[[], None] = lambda: None) -> bool:
    """Train until the last step, early stopping or a signal. Return False if a signal stopped the run.

    `after_step` is called after each step, for example by a profiler.

    Raises:
        DivergedError: a loss or gradient is not finite; the step was skipped.
        MachineError: out of memory at one sample per micro-batch.
    """
    while not is_finished(run):
        try:
            throughput = _epoch(run, after_step)
        except RolledBack:
            continue
        if run.should_stop() or not end_epoch(run, throughput):
            _save(run, False)
            return False
    return True


def _epoch(run: Run, after_step: Callable[[], None]) -> float:
    """Train the rest of the epoch, or until a signal. Return the throughput in task units per second."""
    train, progress = run.recipe.train, run.progress
    run.train_mode()
    started, first_count = time.perf_counter(), progress.loss_count
    # A run saved between its last step and the evaluation after it has no step left, though maybe some of the epoch.
    trained = progress.step == run.total_steps
    for raw in run.timer.waiting("data", () if trained else run.batches.steps(progress.epoch, progress.batch_in_epoch)):
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
    return (progress.loss_count - first_count) / (time.perf_counter() - started)


def train_step(run: Run, raw: Batch) -> StepResult:
    """Take one optimizer step on this rank's part of the batch. Skip it if the loss or gradient is not finite.

    On out of memory, the micro-batch size is halved for the rest of the run. The step is repeated
    with more gradient accumulation, so the effective batch size stays the same.
    """
    run.set_lr()
    run.timer.steps += 1
    buffers = [b.clone() for b in run.model.buffers()] if run.recipe.train.skip_nonfinite else []
    count = int(run.parallel.global_count(run.task.count(raw)))
    with begun_by_first_batch(run.model) if run.progress.step == 0 else nullcontext():
        while (total := _gradients(run, raw, count)) is None:
            _halve(run)
    run.gradients.finish(run)
    with run.timer("optimizer"):
        parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        grads = gradient_values(run.optimizer, run.parallel.group.world)
        norm = run.parallel.gather_full(torch.nn.utils.get_total_norm(grads))
        if run.recipe.train.clip_norm is not None:
            clip_gradients(parameters, run.recipe.train.clip_norm, norm)
        finite = torch.isfinite(norm + total)
        for before, now in zip(buffers, run.model.buffers(), strict=False):  # undo NaNs in BatchNorm statistics
            now.copy_(torch.where(finite, now, before))
        _update(run, finite)
    return StepResult(total, norm, finite, count)


def _gradients(run: Run, raw: Batch, count: int) -> Tensor | None:
    """Compute the gradient of a step whose samples have `count` units on all ranks.

    Returns the sum of their losses, or None if a rank ran out of memory.
    """
    train, task, placement = run.recipe.train, run.task, run.placement
    total = torch.zeros((), device=placement.device)
    num_micro_batches = run.parallel.num_micro_batches(
        max(run.recovery.num_micro_batches, train.accumulate), run.batches.size(run.progress.batch_in_epoch)
    )
    out_of_memory = False
    try:
        for micro, last in micro_batches(placement.batch(raw), num_micro_batches):
            with run.timer("prepare"):
                key = SampleKey(train.seed, run.progress.epoch, micro["index"])
                micro = placement.inputs(task.prepare(micro, key))
            with run.parallel.syncing(last):
                total += run.gradients.add(run, micro, count)
    except ValueError as error:
        if is_lone_sample(error):
            hint = "a larger --batch-size; if memory ran out, a smaller model"
            raise MachineError("a micro-batch of one sample, which BatchNorm cannot train on", hint=hint) from None
        raise
    except RuntimeError as error:  # OutOfMemoryError on CUDA, a plain RuntimeError from the CPU allocator
        if not is_out_of_memory(error):
            raise
        out_of_memory = True
    return None if run.parallel.out_of_memory(out_of_memory) else run.parallel.all_reduce(total)


def _halve(run: Run) -> None:
    """Double the number of micro-batches for the rest of the run.

    Raises:
        MachineError: each already has only one sample.
    """
    size, recovery = run.batches.size(run.progress.batch_in_epoch), run.recovery
    now = max(recovery.num_micro_batches, run.recipe.train.accumulate)
    if size // run.batches.shards // now <= 1:
        hint = "a smaller model, --precision bf16, or a machine with more memory"
        raise MachineError("out of memory at micro-batch 1", hint=hint)
    recovery.num_micro_batches = 2 * now
    run.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    micro = -(-size // run.batches.shards // recovery.num_micro_batches)
    message = f"out of memory: micro-batch {micro} x {recovery.num_micro_batches} accumulated; the batch stays {size}"
    run.emit({"event": "warning", "message": message})


def _update(run: Run, finite: Tensor) -> None:
    """Step if `finite` (a bool on the device) is true, and avoid a device synchronization if possible."""
    if run.placement.lag and hasattr(run.optimizer, "_step_supports_amp_scaling"):
        # As GradScaler does: a fused kernel reads the flag on the device and skips the update if it is set.
        run.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        run.optimizer.step()
        del run.optimizer.found_inf  # type: ignore[attr-defined]
        taken = True
    else:
        taken = bool(finite)  # free on a CPU; about 20 us on CUDA, for optimizers that are not fused
        if taken:
            run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.ema is not None and taken:
        run.ema.update_parameters(run.model)


def settle(run: Run, leave: int = 0) -> None:
    """Read the results of pending steps, except the last `leave`, which may still be running on the device.

    Raises:
        DivergedError: a step had a loss or gradient that is not finite.
    """
    while len(run.pending_steps) > leave:
        step = run.progress.step - len(run.pending_steps) + 1
        result = run.pending_steps.popleft()
        loss, count = result.loss.item(), max(result.count, 1)  # a step of private training may have no sample
        if not result.finite.item():
            _not_finite(run, f"step {step}: loss {loss / count:g}, gradient norm {result.norm.item():g}")
            continue
        run.recovery.bad_steps = 0
        run.progress.loss_sum += loss
        run.progress.loss_count += result.count
        event = {"event": "step", "step": step, "epoch": run.progress.epoch + 1, "loss": loss / count}
        run.emit({**event, "count": result.count})


class RolledBack(Exception):
    """The run was restored to its last checkpoint and continues from there."""


def _not_finite(run: Run, problem: str) -> None:
    """Handle a step whose loss or gradient is not finite.

    By default the run stops. If ``train.skip_nonfinite`` allows bad steps, up to that many in a row are
    skipped; then the run is restored to its last checkpoint. That halves the learning rate, because the
    same steps at the same rate would diverge again.

    Raises:
        DivergedError: no bad steps are allowed, there is no checkpoint, or the rate was halved three times.
        RolledBack: the run was restored to its last checkpoint.
    """
    run.recovery.bad_steps += 1
    if run.recovery.bad_steps <= run.recipe.train.skip_nonfinite:
        run.emit({"event": "warning", "message": f"{problem}: step skipped"})
        return
    run.pending_steps.clear()
    scale = run.progress.lr_scale / 2
    if not run.recipe.train.skip_nonfinite or scale < MIN_LR_SCALE or not run.hooks.roll_back(run):
        hint = "a lower --lr, a longer warm-up, or --set train.clip_norm=1"
        raise DivergedError(problem, "both must be finite", hint)
    run.progress.lr_scale, run.recovery.bad_steps = scale, 0
    message = f"{problem}: back to step {run.progress.step}, learning rate times {scale:g} from here"
    run.emit({"event": "warning", "message": message})
    raise RolledBack


def _save(run: Run, best: bool) -> None:
    settle(run)
    with run.timer("saving"):
        run.hooks.save(run, best)


def end_epoch(run: Run, throughput: float, epoch: int | None = None) -> bool:
    """Evaluate, log and save. Return False if a signal stopped the evaluation.

    `epoch` is the number of the epoch that ends, from 1; None: the one after the last.
    """
    train, progress = run.recipe.train, run.progress
    epoch = progress.epoch + 1 if epoch is None else epoch
    last = progress.step == run.total_steps
    event = {
        "event": "epoch",
        "epoch": epoch,
        "step": progress.step,
        "train_loss": progress.loss_sum / max(progress.loss_count, 1),
        "lr": run.lr,
        **run.gradients.spent(run),
        f"{run.task.unit}_per_second": throughput,
    }
    if run.parallel.group.world > 1:
        event["straggler"] = run.parallel.straggler(run.timer.own())
    best = False
    if last or every(train.eval_epochs, epoch):
        run.emit({"event": "evaluating"})
        with run.timer("evaluation"):
            run.parallel.average_buffers(run)
            metrics = _validate(run)
        if metrics is None:
            return False
        best = is_best(run, metrics, epoch)
        event |= {f"val_{k}": v for k, v in metrics.items()} | {"best": best}
    progress.epoch = epoch
    progress.batch_in_epoch = progress.loss_count = 0
    progress.loss_sum = 0.0
    run.emit(event)  # before saving: a resumed run can drop later events but cannot restore missing ones
    _save(run, best)
    return True


def evaluate_start(run: Run, throughput: float) -> bool:
    """Evaluate, log and save the weights that training starts from, as epoch 0. Return False if a signal stopped it."""
    if end_epoch(run, throughput, epoch=0):
        return True
    _save(run, False)
    return False


def _validate(run: Run) -> dict[str, float] | None:
    """The metrics on the validation split, where a task may choose values to save; None if a signal stopped it."""
    size, group, task = run.recipe.train.eval_batch_size, run.parallel.group, run.task
    if not isinstance(task, FitsToVal):
        return evaluate(run.eval_model, task, run.val, run.placement, size, run.should_stop, group)
    outputs = split_outputs(run.eval_model, task, run.val, run.placement, size, run.should_stop, group)
    if outputs is None:
        return None
    fitted = task.fit_to_val(outputs)
    run.meta["input"] = {"kind": fitted.spec.kind, **fitted.spec.to_dict()}
    return fitted.score(outputs)


def is_finished(run: Run) -> bool:
    """Whether there is nothing left to train or to evaluate: the epoch of the last step has ended, too."""
    trained = run.progress.step >= run.total_steps and run.progress.batch_in_epoch == 0
    return trained or _out_of_patience(run)


def _out_of_patience(run: Run) -> bool:
    """Whether an evaluation has just found that `train.patience` epochs were no better than the best before them."""
    train, epoch = run.recipe.train, run.progress.epoch
    looked = epoch > 0 and every(train.eval_epochs, epoch)
    return train.patience is not None and looked and epoch - run.progress.best_epoch >= train.patience
