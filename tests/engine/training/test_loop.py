"""The loop's own rules, on a run of ten steps an epoch: what is counted, saved, evaluated, halved and gone back to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bigmodel_cli.core.errors import DivergedError, MachineError
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import LossSum
from bigmodel_cli.engine.training import best_epoch, loop
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.run import Hooks, Run
from bigmodel_cli.tasks.image_classification import ImageClassification

BATCH = 130  # ten steps an epoch of digits' 1294 images


class Watched:
    """A run, with the events it told of and the saves it made: (step, best)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: str = "perceptron", **sections: Any) -> None:
        monkeypatch.setattr(
            "bigmodel_cli.engine.training.build_run.autotune", lambda section, placement, *rest: placement
        )
        values = {"model": {"name": model}, "data": {"name": "digits"}, **sections}
        values["train"] = {"epochs": 2, "batch_size": BATCH, **sections.get("train", {})}
        self.events: list[dict[str, Any]] = []
        self.saves: list[tuple[int, bool]] = []
        self.save: Callable[[Run, bool], None] = lambda run, best: self.saves.append((run.progress.step, best))
        self.should_stop: Callable[[], bool] = lambda: False
        self.roll_back: Callable[[], bool] = lambda: False
        self.after_step: Callable[[], object] = lambda: None
        hooks = Hooks(
            on_event=self.events.append,
            should_stop=lambda run: self.should_stop(),
            save=lambda run, best: self.save(run, best),
            roll_back=lambda run: self.roll_back(),
        )
        self.run: Run = assemble(resolve([Layer("t", values)]).recipe, hooks=hooks)

    def fit(self) -> bool:
        return loop.fit(self.run, lambda: self.after_step())

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


def losses(monkeypatch: pytest.MonkeyPatch, change: Any) -> list[int]:
    """Every training loss goes through `change(call, loss)`; gives the sizes of the micro-batches."""
    real, sizes = ImageClassification.loss, []

    def loss(self: ImageClassification, model: Any, batch: Any) -> LossSum:
        sizes.append(len(batch["label"]))
        found = real(self, model, batch)
        return LossSum(change(len(sizes), found.total), found.count)

    monkeypatch.setattr(ImageClassification, "loss", loss)
    return sizes


def vals(monkeypatch: pytest.MonkeyPatch, *metrics: dict[str, float] | None) -> list[int]:
    """What the evaluations of the run find; the last for all that follow. Gives what was asked."""
    asked: list[int] = []

    def evaluate(*arguments: Any) -> dict[str, float] | None:
        asked.append(1)
        return metrics[min(len(asked), len(metrics)) - 1]

    monkeypatch.setattr(loop, "evaluate", evaluate)
    return asked


def test_steps_and_epochs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Watched(monkeypatch, optimizer={"name": "sgd", "lr": 0.05}, schedule={"name": "constant"})
    sizes = [it.run.batches.size(i) for i in range(10)]
    assert it.fit()
    steps, epochs = it.told("step"), it.told("epoch")
    assert [e["step"] for e in steps] == list(range(1, 21)) and [e["epoch"] for e in steps] == [1] * 10 + [2] * 10
    assert [e["count"] for e in steps] == sizes * 2
    assert [(e["epoch"], e["step"]) for e in epochs] == [(1, 10), (2, 20)]
    for i, epoch in enumerate(epochs):  # the mean over samples, not over steps
        part = steps[10 * i : 10 * i + 10]
        mean = sum(e["loss"] * e["count"] for e in part) / sum(e["count"] for e in part)
        assert epoch["train_loss"] == pytest.approx(mean, rel=1e-6) and epoch["lr"] == pytest.approx(0.05)
        assert epoch["images_per_second"] > 0 and "straggler" not in epoch
        assert {"val_loss", "val_accuracy", "best"} <= set(epoch)
    progress = it.run.progress
    assert (progress.step, progress.epoch, progress.batch_in_epoch) == (20, 2, 0)
    assert (progress.samples_seen, progress.loss_sum, progress.loss_count) == (2 * sum(sizes), 0, 0)
    # An epoch is told of before it is saved: what a resumed run finds past its checkpoint it can drop.
    kinds = [e["event"] for e in it.events if e["event"] != "step"]
    assert kinds == ["evaluating", "epoch"] * 2
    assert not it.run.pending_steps and it.run.timer.steps == 20


def test_the_first_loss_is_that_of_the_untrained_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed here from the weights and the images alone; and the first step is plain gradient descent by it."""
    it = Watched(
        monkeypatch, optimizer={"name": "sgd", "lr": 0.1}, schedule={"name": "constant"}, train={"max_steps": 1}
    )
    run = it.run
    raw = next(run.batches.steps(0))
    weights = {k: v.detach().clone().requires_grad_() for k, v in run.model.named_parameters()}
    images = run.task.prepare(dict(raw))["image"]
    logits = torch.func.functional_call(run.model, weights, (images,))
    expected = torch.nn.functional.cross_entropy(logits, raw["label"])
    gradients = torch.autograd.grad(expected, list(weights.values()))
    loop.fit(run)
    assert it.told("step")[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    for (name, before), gradient in zip(weights.items(), gradients, strict=True):
        torch.testing.assert_close(dict(run.model.named_parameters())[name], before - 0.1 * gradient)


@pytest.mark.parametrize(
    ("train", "saved", "evaluated"),
    [
        ({}, [10, 20, 30], [1, 2, 3]),
        ({"save_steps": 7}, [7, 10, 14, 20, 21, 28, 30], [1, 2, 3]),
        ({"save_steps": 10}, [10, 10, 20, 20, 30, 30], [1, 2, 3]),
        ({"epochs": 5, "eval_epochs": 3}, [10, 20, 30, 40, 50], [3, 5]),  # and after the last
        ({"max_steps": 14}, [10, 14], [1, 2]),
        ({"max_steps": 14, "eval_epochs": 5}, [10, 14], [2]),
    ],
    ids=str,
)
def test_when_it_saves_and_evaluates(
    train: dict[str, int], saved: list[int], evaluated: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = Watched(monkeypatch, train={"epochs": 3, **train})
    asked = vals(monkeypatch, {"accuracy": 0.5, "loss": 1.0})
    assert it.fit()
    assert [step for step, _ in it.saves] == saved and len(asked) == len(it.told("evaluating"))
    assert [e["epoch"] for e in it.told("epoch") if "val_loss" in e and "best" in e] == evaluated
    assert len(asked) == len(evaluated)
    assert it.run.progress.step == saved[-1] == it.run.total_steps


INF, NAN = math.inf, math.nan
VALUES = [(0.5, 1.0), (0.5, 1.0), (0.4, 0.1), (0.5, 0.9), (0.6, 2.0)]


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("max", VALUES, [True, False, False, True, True]),  # a tie is decided by the loss
        ("min", VALUES, [True, False, True, False, False]),
        ("max", [(-1.0, 5.0), (-2.0, 4.0)], [True, False]),
        ("min", [(3.0, 3.0), (2.0, 9.0), (2.0, 9.0)], [True, True, False]),
        ("min", [(INF, 800.0), (INF, 750.0), (INF, 760.0), (9.0, 2.2)], [True, True, False, True]),
        ("max", [(0.5, 1.0), (NAN, 0.1), (0.5, NAN)], [True, False, False]),
        ("min", [(NAN, NAN), (3.0, 1.1)], [True, True]),
    ],
    ids=["max", "min", "negative", "min falls", "no bound", "no number", "a number"],
)
def test_what_is_best(
    mode: str, values: list[tuple[float, float]], best: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = Watched(monkeypatch, train={"epochs": len(values), "max_steps": None})
    monkeypatch.setattr(best_epoch, "FEW_SAMPLES", 0)
    monkeypatch.setattr(type(it.run.task), "best", ("accuracy", mode))
    vals(monkeypatch, *({"accuracy": value, "loss": loss} for value, loss in values))
    assert it.fit()
    assert [b for _, b in it.saves] == best == [e["best"] for e in it.told("epoch")]
    last = max(i for i, b in enumerate(best) if b)
    progress = it.run.progress
    assert (progress.best_metric, progress.best_loss) == values[last] and progress.best_epoch == last + 1


LUCKY, BEGUN, SURE, WORSE = (0.96, 0.19), (0.94, 0.11), (0.99, 0.20), (0.90, 0.05)


@pytest.mark.parametrize(
    ("samples", "values", "best"),
    [
        (53, [LUCKY, BEGUN], [True, True]),  # one answer of 53 is luck; the loss is not
        (53, [BEGUN, LUCKY], [True, False]),
        (53, [LUCKY, WORSE], [True, False]),  # three answers are not
        (53, [BEGUN, SURE], [True, True]),
        (53, [(1.0, 0.01), BEGUN, (1.0, 0.02)], [True, False, False]),
        (5_300, [LUCKY, BEGUN], [True, False]),
    ],
)
def test_the_loss_decides_between_shares_of_few_samples(
    samples: int, values: list[tuple[float, float]], best: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = Watched(monkeypatch, train={"epochs": len(values), "max_steps": None})
    monkeypatch.setattr(best_epoch, "len", lambda _: samples, raising=False)
    vals(monkeypatch, *({"accuracy": value, "loss": loss} for value, loss in values))
    assert it.fit()
    assert [b for _, b in it.saves] == best


@pytest.mark.parametrize(("patience", "every", "end"), [(1, 1, 3), (3, 1, 5), (1, 2, 6), (3, 2, 8)])
def test_patience_is_so_many_epochs_after_the_best(
    patience: int, every: int, end: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only an evaluation ends it: epochs that nobody looked at may have been better."""
    it = Watched(monkeypatch, train={"epochs": 9, "patience": patience, "eval_epochs": every})
    asked = vals(
        monkeypatch, {"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.6, "loss": 1.0}, {"accuracy": 0.6, "loss": 1.0}
    )
    assert it.fit()
    assert it.run.progress.epoch == end and len(asked) == end // every


def test_a_signal_ends_it_after_the_step_with_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Watched(monkeypatch)
    ticks: list[int] = []
    it.after_step = lambda: ticks.append(it.run.progress.step)
    it.should_stop = lambda: it.run.progress.step >= 13
    assert not it.fit()
    assert it.saves[1:] == [(13, False)] and ticks == list(range(1, 14))
    assert (it.run.progress.epoch, it.run.progress.batch_in_epoch) == (1, 3)
    assert [e["step"] for e in it.told("step")] == ticks and len(it.told("epoch")) == 1


def test_a_signal_in_an_evaluation_saves_the_epoch_as_not_yet_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Watched(monkeypatch)
    vals(monkeypatch, None)
    assert not it.fit()
    assert it.saves == [(10, False)] and it.told("epoch") == []
    assert (it.run.progress.epoch, it.run.progress.batch_in_epoch) == (0, 10)


@pytest.mark.parametrize("steps", [None, 13])
def test_a_signal_in_the_last_evaluation_leaves_it_to_the_resumed_run(
    steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step is left, also where `max_steps` ends within an epoch; the epoch is still to be evaluated."""
    it = Watched(monkeypatch, train={"max_steps": steps})
    asked = vals(monkeypatch, {"accuracy": 0.5, "loss": 1.0}, None, {"accuracy": 0.7, "loss": 1.0})
    assert not it.fit() and it.run.progress.step == it.run.total_steps == (steps or 20)
    weights = [p.clone() for p in it.run.model.parameters()]
    assert it.fit() and len(asked) == 3
    assert [e["epoch"] for e in it.told("epoch")] == [1, 2]
    assert it.told("epoch")[-1]["val_accuracy"] == 0.7 and it.run.progress.best_epoch == 2
    assert it.run.progress.step == it.run.total_steps
    for before, now in zip(weights, it.run.model.parameters(), strict=True):
        assert torch.equal(before, now)
    assert it.fit() and len(asked) == 3, "finished"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), None], ids=["CUDA", "CPU"])
def test_where_memory_runs_out_the_micro_batch_is_halved_for_good(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps as without: RELIABILITY asks for losses within 1e-5."""
    plain = {"optimizer": {"name": "sgd", "lr": 0.1}, "train": {"max_steps": 4}}
    whole = Watched(monkeypatch, **plain)
    whole.fit()
    it = Watched(monkeypatch, **plain)

    def short(call: int, total: Any) -> Any:
        if sizes[-1] > 40:
            if error is None:
                torch.empty(2**55)  # what the allocator of the CPU says
            raise error
        return total

    sizes = losses(monkeypatch, short)
    assert it.fit()
    # 130 does not fit, nor 65: four pieces of the first step, which is begun anew each time, and of the three after it.
    first = it.run.batches.size(0)
    assert it.run.recovery.num_micro_batches == 4 and sizes[:2] == [first, -(-first // 2)]
    figures = [[int(x) for x in re.findall(r"\d+", e["message"])] for e in it.told("warning")]
    assert figures == [[-(-first // 2), 2, first], [-(-first // 4), 4, first]]  # so many samples, so many times
    assert len(sizes) == 2 + 4 * 4 and max(sizes[2:]) <= 33 and sum(sizes[2:6]) == first
    assert [e["loss"] for e in it.told("step")] == pytest.approx([e["loss"] for e in whole.told("step")], abs=1e-5)


def test_memory_that_does_not_suffice_for_one_sample_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Watched(monkeypatch, train={"batch_size": 8})

    def never(call: int, total: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    sizes = losses(monkeypatch, never)
    with pytest.raises(MachineError) as caught:
        it.fit()
    assert caught.value.exit_code == 3 and sizes == [8, 4, 2, 1] and it.run.progress.step == 0
    assert it.run.recovery.num_micro_batches == 8 and len(it.told("warning")) == 3


def test_what_is_accumulated_already_is_halved_further(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Watched(monkeypatch, train={"batch_size": 64, "accumulate": 4, "max_steps": 1})

    def short(call: int, total: Any) -> Any:
        if sizes[-1] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return total

    sizes = losses(monkeypatch, short)
    assert it.fit()
    size = it.run.batches.size(0)
    assert sizes == [-(-size // 4)] + [-(-size // 8)] * (size % 8) + [size // 8] * (8 - size % 8)
    assert [e["message"].partition(";")[0] for e in it.told("warning")] == [
        f"out of memory: micro-batch {-(-size // 8)} x 8 accumulated"
    ]


def test_another_error_is_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Watched(monkeypatch)
    sizes = losses(monkeypatch, lambda call, total: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError):
        it.fit()
    assert len(sizes) == 1 and it.run.recovery.num_micro_batches == 1


def poisoned(monkeypatch: pytest.MonkeyPatch, calls: range) -> None:
    losses(monkeypatch, lambda call, total: total * math.nan if call in calls else total)


def test_bad_steps_that_are_not_in_a_row_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Watched(monkeypatch, train={"skip_nonfinite": 2})
    losses(monkeypatch, lambda call, total: total * math.nan if call % 3 else total)  # two of three
    assert it.fit()
    assert [e["step"] for e in it.told("step")] == list(range(3, 21, 3)) and len(it.told("warning")) == 14
    counted = [e["count"] for e in it.told("step") if e["epoch"] == 1]
    assert it.told("epoch")[0]["train_loss"] == pytest.approx(
        sum(e["loss"] * e["count"] for e in it.told("step")[:3]) / sum(counted)
    )


def test_the_first_bad_step_ends_it_where_none_may_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Watched(monkeypatch)
    it.roll_back = lambda: pytest.fail("there is no going back unless the recipe says so")
    poisoned(monkeypatch, range(4, 5))
    with pytest.raises(DivergedError) as caught:
        it.fit()
    assert caught.value.exit_code == 4 and caught.value.hint and it.told("warning") == [] and it.saves == []
    assert [e["step"] for e in it.told("step")] == [1, 2, 3] and not it.run.pending_steps


def test_nothing_to_go_back_to_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Watched(monkeypatch, train={"skip_nonfinite": 1})
    poisoned(monkeypatch, range(4, 6))
    with pytest.raises(DivergedError):
        it.fit()
    assert it.run.progress.lr_scale == 1 and len(it.told("warning")) == 1


def test_three_times_back_at_half_the_rate_and_then_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Watched(
        monkeypatch, train={"skip_nonfinite": 1}, optimizer={"name": "sgd", "lr": 0.08}, schedule={"name": "constant"}
    )
    rates: list[float] = []

    def back() -> bool:
        it.run.progress.step -= 2
        it.run.progress.batch_in_epoch -= 2
        return True

    it.roll_back = back
    it.after_step = lambda: rates.append(round(it.run.lr, 10))
    poisoned(monkeypatch, range(5, 10_000))
    with pytest.raises(DivergedError):
        it.fit()
    assert it.run.progress.lr_scale == 1 / 8 and it.run.progress.step == 6
    # Of two bad steps the second raises before its tick.
    assert rates == [0.08] * 5 + [0.04, 0.02, 0.01] and len(it.told("warning")) == 4 + 3


def test_results_are_read_as_late_as_the_device_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where steps are read one behind, each is told of once, in order, under its own number, and none is left."""
    from bigmodel_cli.engine.device.placement import Placement

    it = Watched(monkeypatch, train={"save_steps": 4})
    expected = Watched(monkeypatch, train={"save_steps": 4})
    monkeypatch.setattr(Placement, "lag", 1)
    waiting: list[int] = []
    it.after_step = lambda: waiting.append(len(it.run.pending_steps))
    told_at_save: list[int] = []
    it.save = lambda run, best: told_at_save.append(it.told("step")[-1]["step"])
    assert it.fit()
    monkeypatch.undo()
    assert expected.fit()
    assert it.told("step") == expected.told("step") and set(waiting) == {1}
    assert told_at_save == [4, 8, 10, 12, 16, 20, 20]  # a checkpoint never holds a step that was not looked at


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_averaged_weights_do_not_take_part_in_a_bad_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    it = Watched(monkeypatch, train={"skip_nonfinite": 1, "ema_decay": 0.5}, optimizer={"name": name, "lr": 0.01})
    poisoned(monkeypatch, range(2, 3))
    raws = it.run.batches.steps(0)
    loop.train_step(it.run, next(raws))
    before = [p.clone() for p in it.run.eval_model.parameters()]
    assert it.run.ema is not None and it.run.ema.n_averaged == 1
    loop.train_step(it.run, next(raws))
    assert it.run.ema.n_averaged == 1 and all(map(torch.equal, before, it.run.eval_model.parameters()))
    assert all(p.grad is None for p in it.run.model.parameters())
    loop.train_step(it.run, next(raws))
    assert it.run.ema.n_averaged == 2 and not all(map(torch.equal, before, it.run.eval_model.parameters()))
