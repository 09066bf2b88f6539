"""Progress of a run: a live table on a terminal, one line per epoch elsewhere, events with --json."""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import Progress, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import printable
from bigmodel_cli.metrics.reading import format_metric

Event = dict[str, Any]
REFRESH = 0.1  # seconds between redraws, since a step may take only a millisecond
COLUMNS = ("epoch", "train loss", "val loss", "val metric", "lr", "rate", "ETA", "epsilon")


def for_output(json: bool) -> Display:
    """The display for this output."""
    if json:
        return JsonEvents()
    return LiveTable() if console.is_terminal() else PlainLines()


class Display:
    """Shows events. A context manager, so that the terminal is restored after an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def emit(self, event: Event) -> None:
        raise TypeError(f"{type(self).__name__} does not define emit")


class Silence(Display):
    """Shows nothing: for ranks other than 0."""

    def emit(self, event: Event) -> None:
        pass


class JsonEvents(Display):
    """Every event except steps, as one JSON object per line on stdout."""

    def emit(self, event: Event) -> None:
        if event["event"] != "step":
            console.print_json(event)


class PlainLines(Display):
    """One line per epoch, for logs and CI."""

    def __init__(self) -> None:
        self.clock = Clock()

    def emit(self, event: Event) -> None:
        self.clock.update(event)
        if event["event"] == "start":
            for line in start_lines(event):
                console.note(line)
        elif event["event"] == "utilisation":
            console.note(utilisation_line(event, self.clock.unit))
        elif event["event"] == "epoch":
            names = (
                "epoch",
                "train_loss",
                "val_loss",
                self.clock.metric,
                "lr",
                f"{self.clock.unit}/s",
                "eta",
                "epsilon",
            )
            cells = zip(names, epoch_row(event, self.clock), strict=True)
            line = "  ".join(f"{name} {cell}" for name, cell in cells if cell != "-")
            console.note(line + straggler(event))
        elif event["event"] in ("note", "warning"):
            console.note(("warning: " if event["event"] == "warning" else "") + event["message"])


class LiveTable(Display):
    """The last epochs in a table, with a progress bar of the run."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []
        self.straggler = ""
        self.clock = Clock()
        self.drawn = 0.0
        self.live = Live(console=console.err, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self.live.is_started:
            self.live.update(self._table(), refresh=True)
            self.live.stop()

    def emit(self, event: Event) -> None:
        self.clock.update(event)
        if event["event"] == "start":
            for line in start_lines(event):
                console.note(line)
            self.live.start()
        elif event["event"] == "utilisation":
            console.note(utilisation_line(event, self.clock.unit))
        elif event["event"] == "epoch":
            self.rows.append(epoch_row(event, self.clock))
            self.straggler = straggler(event)
        elif event["event"] in ("note", "warning"):
            console.note(("warning: " if event["event"] == "warning" else "") + event["message"])
        if self.live.is_started and (event["event"] != "step" or time.monotonic() - self.drawn > REFRESH):
            self.live.update(Group(self._table(), self._bar()), refresh=True)
            self.drawn = time.monotonic()

    def _table(self) -> Table:
        max_rows = max(console.err.height - 8, 4)
        titles = {"val metric": self.clock.metric.replace("_", " "), "rate": f"{self.clock.unit}/s"}
        private = any(row[-1] != "-" for row in self.rows)
        head = [titles.get(column, column) for column in COLUMNS if private or column != "epsilon"]
        # Long runs show their last epochs; metrics.jsonl has all of them.
        return console.table(None, head, [row[: len(head)] for row in self.rows[-max_rows:]], right=True)

    def _bar(self) -> RenderableType:
        clock = self.clock
        bar = ProgressBar(
            total=max(clock.total_steps, 1), completed=clock.step, width=30 if console.err.width >= 110 else 10
        )
        grid = Table.grid(padding=(0, 1))
        grid.add_row(
            bar,
            Text(
                f"step {clock.step}/{clock.total_steps}  loss {clock.loss:.4f}  {clock.speed()}  "
                f"ETA {clock.eta()}{self.straggler}"
            ),
        )
        return grid


class WaitBars:
    """A bar for each download and each split being decoded; without a terminal, one line when each starts."""

    def __init__(self) -> None:
        self.bar = Progress(*Progress.get_default_columns(), TextColumn("{task.fields[amount]}"), console=console.err)
        self.tasks: dict[str, TaskID] = {}
        self.callbacks = ExitStack()

    def __enter__(self) -> Self:
        from bigmodel_cli.data import download, thread_map

        download.on_progress.append(self.on_download)
        self.callbacks.callback(download.on_progress.remove, self.on_download)
        self.callbacks.enter_context(thread_map.progress_listener(self.on_decode))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.callbacks.close()
        if self.bar.live.is_started:  # stopping what never started would print an empty line
            self.bar.stop()

    def on_download(self, name: str, done: int, total: int | None) -> None:
        amount = f"{done / 1e6:.1f} MB" if total is None else f"{done / 1e6:.1f}/{total / 1e6:.1f} MB"
        self._show(f"downloading {name}", done, total, amount)

    def on_decode(self, what: str, done: int, total: int | None) -> None:
        self._show(what, done, total, f"{done:,}" if total is None else f"{done:,}/{total:,}")

    def read(self, what: str, done: int, total: int) -> None:
        self._show(what, done, total, f"{done / 1e6:.1f}/{total / 1e6:.1f} MB")

    def _show(self, what: str, done: int, total: int | None, amount: str) -> None:
        if what not in self.tasks:
            if console.is_terminal():
                self.bar.start()
            else:
                console.note(what)
            self.tasks[what] = self.bar.add_task(escape(printable(what)), total=total, amount=amount)
        self.bar.update(self.tasks[what], completed=done, total=total, amount=amount)
        if self.bar.live.is_started and done == total and all(task.finished for task in self.bar.tasks):
            self.bar.stop()
            for task in self.tasks.values():  # otherwise the next bar would show these again
                self.bar.remove_task(task)
            self.tasks.clear()


class Clock:
    """The progress of a run, and the time that the rest will take at the speed so far."""

    def __init__(self) -> None:
        self.total_steps = self.step = self.first_step = 0
        self.loss = float("nan")
        self.metric, self.unit = "val metric", "samples"
        self.started = time.monotonic()
        self.counts: deque[tuple[float, int]] = deque(maxlen=200)
        self.flops_per_unit = self.peak = 0.0

    def update(self, event: Event) -> None:
        if event["event"] == "start":
            self.total_steps, self.step = event["total_steps"], event["step"]
            self.metric, self.unit = "val_" + event["metric"], event["unit"]
            self.first_step, self.started = self.step, time.monotonic()
        elif event["event"] == "step":
            self.step, self.loss = event["step"], event["loss"]
            self.counts.append((time.monotonic(), event.get("count", 0)))
        elif event["event"] == "utilisation":
            self.flops_per_unit, self.peak = event["flops_per_unit"], event["peak"]

    def speed(self) -> str:
        """Units per second over the last steps, and the model-FLOPs utilization."""
        if len(self.counts) < 2 or self.counts[-1][0] <= self.counts[0][0]:
            return "-"
        rate = sum(n for _, n in list(self.counts)[1:]) / (self.counts[-1][0] - self.counts[0][0])
        return f"{rate:,.0f} {self.unit}/s{self.mfu(rate)}"

    def mfu(self, rate: float) -> str:
        """Model-FLOPs utilization at `rate` units per second; empty where it is unknown."""
        return f", MFU {rate * self.flops_per_unit / self.peak:.0%}" if self.peak else ""

    def eta(self) -> str:
        done = self.step - self.first_step
        if not done:
            return "-"
        return duration((time.monotonic() - self.started) / done * (self.total_steps - self.step))


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def epoch_row(event: Event, clock: Clock) -> tuple[str, ...]:
    """The cells of one epoch, in the order of COLUMNS; ``*`` marks a new best."""
    rate = next((v for k, v in event.items() if k.endswith("_per_second")), 0.0)
    metric = event.get(clock.metric)
    loss = event.get("val_loss")
    return (
        str(event["epoch"]),
        f"{event['train_loss']:.4f}",
        "-" if loss is None else f"{loss:.4f}",
        format_metric(clock.metric, metric) + (" *" if event.get("best") else ""),
        f"{event['lr']:.2e}",
        f"{rate:,.0f}{clock.mfu(rate)}",
        clock.eta(),
        f"{event['epsilon']:.3g}" if "epsilon" in event else "-",
    )


def straggler(event: Event) -> str:
    """The rank that the others are waiting for, if any, to end a line with."""
    return f"  {event['straggler']}" if event.get("straggler") else ""


def utilisation_line(event: Event, unit: str) -> str:
    peak = f"{event['peak'] / 1e9:,.0f} GFLOP/s, {event['which']}"
    return f"{event['flops_per_unit'] / 1e6:,.3g} MFLOP per {unit.removesuffix('s')}; MFU is relative to {peak}"


def start_lines(event: Event) -> list[str]:
    lines = [
        f"{event['model']} on {event['data']}: {event['parameters']:,} parameters ({event['trainable']:,} trained)"
    ]
    lines.append(f"{event['train_size']:,} training and {event['val_size']:,} validation samples; {event['placement']}")
    return [*lines, *event["notes"], f"run folder: {event['folder']}"]
