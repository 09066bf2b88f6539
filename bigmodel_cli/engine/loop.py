"""THE training loop. It knows no model, data set or task by name."""

from __future__ import annotations

import time

import torch

from bigmodel_cli.core.errors import DivergedError, MachineError
from bigmodel_cli.core.types import Batch, SampleKey
from bigmodel_cli.engine.batches import micro_batches
from bigmodel_cli.engine.evaluate import evaluate
from bigmodel_cli.engine.run import Run


def every(n: int | None, step: int) -> bool:
    return n is not None and step % n == 0


def fit(run: Run) -> bool:
    """Train until the last step, early stopping or a signal. True where it ended by itself.

    Raises:
        DivergedError: a loss or gradient is not finite; the step was not taken.
        MachineError: out of memory with one sample a micro-batch.
    """
    train, progress = run.recipe.train, run.progress
    while progress.step < run.total_steps and not _out_of_patience(run):
        run.train_mode()
        clock = time.perf_counter()
        first = progress.samples_seen
        for raw in run.batches.steps(progress.epoch, progress.batch_in_epoch):
            loss, count = train_step(run, raw)
            progress.loss_sum += loss
            progress.loss_count += count
            progress.step += 1
            progress.batch_in_epoch += 1
            progress.samples_seen += len(raw["index"])
            run.emit({"event": "step", "step": progress.step, "epoch": progress.epoch + 1, "loss": loss / count})
            if every(train.save_steps, progress.step):
                run.save(run, False)
            if progress.step == run.total_steps or run.stop():
                break
        rate = (progress.samples_seen - first) / (time.perf_counter() - clock)
        if run.stop() or not end_epoch(run, rate):
            run.save(run, False)
            return False
    return True


def train_step(run: Run, raw: Batch) -> tuple[float, int]:
    """One optimizer step on the raw batch: the sum of the loss and the count it sums over.

    Where memory runs out, the micro-batch is halved for good and the step is done
    again with more accumulation: the effective batch stays what the recipe says.
    """
    run.set_lr()
    while True:
        try:
            return _forward_backward_update(run, raw)
        except RuntimeError as error:  # OutOfMemoryError on CUDA, a plain RuntimeError from the CPU allocator
            if not _is_out_of_memory(error):
                raise
            micro = len(raw["index"]) // run.pieces
            if micro <= 1:
                hint = "a smaller model, --precision bf16, or a machine with more memory"
                raise MachineError("out of memory at micro-batch 1", hint=hint) from None
        run.pieces *= 2
        run.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        size = -(-len(raw["index"]) // run.pieces)
        message = f"out of memory: micro-batch {size} x {run.pieces} accumulated; the batch stays {len(raw['index'])}"
        run.emit({"event": "warning", "message": message})


def _forward_backward_update(run: Run, raw: Batch) -> tuple[float, int]:
    train, task, place = run.recipe.train, run.task, run.placement
    count = task.count(raw)
    total = torch.zeros((), device=place.device)
    for micro in micro_batches(place.batch(raw), max(run.pieces, train.accumulate)):
        key = SampleKey(train.seed, run.progress.epoch, micro["index"])
        micro = place.inputs(task.prepare(micro, key))
        with place.autocast():
            loss = task.loss(run.forward, micro).total
        (loss / count).backward()
        total += loss.detach()
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # The one host sync of a step (on CUDA it costs the launch queue, some 20 us): without it
    # a non-finite gradient would be in the weights, and soon in the checkpoint.
    loss_sum, finite = total.item(), bool(torch.isfinite(norm + total))
    if not finite:
        run.optimizer.zero_grad(set_to_none=True)
        raise DivergedError(
            f"step {run.progress.step + 1}: loss {loss_sum / count:g}, gradient norm {norm.item():g}",
            "both must be finite",
            "a lower --lr, a longer warm-up, or --set train.clip_norm=1",
        )
    if train.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, train.clip_norm, norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.ema is not None:
        run.ema.update_parameters(run.model)
    return loss_sum, count


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
    best = False
    if last or every(train.eval_epochs, progress.epoch + 1):
        run.emit({"event": "evaluating"})
        metrics = evaluate(run.eval_model, run.task, run.val, run.placement, train.eval_batch_size, run.stop)
        if metrics is None:
            return False
        best = _is_best(run, metrics)
        event |= {f"val_{k}": v for k, v in metrics.items()} | {"best": best}
    progress.epoch += 1
    progress.batch_in_epoch = progress.loss_count = 0
    progress.loss_sum = 0.0
    run.save(run, best)
    run.emit(event)
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


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
