"""``bigmodel watch``: follow a run in the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import InputError, InterruptedRun
from bigmodel_cli.core.files.event_log import is_number, read_events, read_status
from bigmodel_cli.core.registry import commands
from bigmodel_cli.metrics.reading import format_metric

if TYPE_CHECKING:
    from rich.console import RenderableType

Event = dict[str, Any]
POLL = 0.5  # seconds
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # epochs in a row of bars
ROWS = 12


@commands.register(order=27)
def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    once: Annotated[bool, typer.Option("--once", help="Show where it stands and end.")] = False,
    json: opt.Json = False,
) -> None:
    """Follow a running or finished run from its folder, also one on another machine that shares the disk.

    It ends with the run. Ctrl-C ends only the watching.

    Examples:

        bigmodel watch runs/resnet18-digits-1

        bigmodel watch runs/resnet18-digits-1 --once --json
    """
    if not (run / "status.json").exists():
        raise InputError(f"{run}: no run", "expected a run folder with a status.json", "ls runs")
    if json:
        for event in _events(run, once):
            console.print_json(event)
        console.print_json({"event": "status", **_status(run)})
        return
    if console.is_terminal() and not once:
        _live(run)
    else:
        for event in _events(run, once):
            if event["event"] != "evaluating":
                console.say(line_of(event))
    console.say(state_line(run))


def _events(run: Path, once: bool) -> Iterator[Event]:
    """The events of the run's log, and those to come until it ends. A resumed run may repeat the last epochs."""
    seen = 0
    while True:
        over = once or not is_going(run)  # before reading: the last event comes before the state
        events = _read(run)
        if len(events) < seen:
            seen = 0  # a resumed run has rewritten its log
        yield from events[seen:]
        seen = len(events)
        if over:
            return
        time.sleep(POLL)


def _read(run: Path) -> list[Event]:
    log = run / "metrics.jsonl"
    return read_events(log) if log.is_file() else []


def is_going(run: Path) -> bool:
    """Whether the run is at work: its status says so, and a process holds its folder."""
    from bigmodel_cli.engine.session.run_folder import holder_of

    return read_status(run).get("state") == "running" and holder_of(run) is not None


def _status(run: Path) -> Event:
    """The status, which is ``stopped`` where the process of a running run is gone."""
    status = read_status(run)
    if status.get("state") == "running" and not is_going(run):
        return {**status, "state": "stopped", "message": "its process is gone"}
    return status


def state_line(run: Path) -> str:
    status = _status(run)
    said = f": {status['message']}" if status.get("message") else ""
    hint = {"done": f"; bigmodel eval {run}", "running": ""}
    more = hint.get(str(status.get("state")), f"; bigmodel train --resume --out {run}")
    return f"{status.get('state')}, step {status.get('step')}{said}{more}"


def line_of(event: Event) -> str:
    """An event as a line."""
    if event["event"] == "start":
        return (
            f"{event.get('model')} on {event.get('data')}: {event.get('total_steps')} steps, {event.get('placement')}"
        )
    if event["event"] == "epoch":
        values = [f"{k} {format_metric(k, v)}" for k, v in event.items() if isinstance(v, float) and k != "lr"]
        return f"epoch {event.get('epoch')}  step {event.get('step')}  " + "  ".join(values)
    if event["event"] == "end":
        seconds = event.get("seconds")
        return f"end: {event.get('steps')} steps" + (f" in {seconds:.1f} s" if is_number(seconds) else "")
    return str(event.get("message", event["event"]))


def _live(run: Path) -> None:
    """A view that is redrawn, until the run or the person ends it."""
    from rich.live import Live

    with Live(console=console.err, auto_refresh=False) as live:
        try:
            while True:
                going = is_going(run)
                live.update(view(run, _read(run)), refresh=True)
                if not going:
                    return
                time.sleep(POLL)
        except InterruptedRun:  # Ctrl-C
            return


def view(run: Path, events: list[Event]) -> RenderableType:
    """The last epochs, and every loss and metric so far as a row of bars."""
    from rich.console import Group

    epochs = [e for e in events if e["event"] == "epoch"]
    start = next((e for e in reversed(events) if e["event"] == "start"), {})
    names = [k for k in dict.fromkeys(k for e in epochs for k in e) if k == "train_loss" or k.startswith("val_")]
    rows = [
        (str(e.get("epoch")), str(e.get("step")), *(_cell(n, e.get(n)) for n in names), "*" if e.get("best") else "")
        for e in epochs[-ROWS:]
    ]
    head = ("epoch", "step", *(n.replace("_", " ") for n in names), "best")
    lines = [console.text(f"{n.replace('_', ' '):>24} {bars([e.get(n) for e in epochs])}") for n in names]
    of = f" of {start['epochs']} epochs" if "epochs" in start else ""
    title = console.text(f"{run}: {start.get('model', '')} on {start.get('data', '')}, {len(epochs)}{of}", "bold")
    return Group(title, console.table(None, head, rows, right=True), *lines, console.text(state_line(run)))


def _cell(name: str, value: Any) -> str:
    return format_metric(name, value) if isinstance(value, (int, float)) else "-"


def bars(values: list[Any]) -> str:
    """The last values as bars between the lowest and the highest; a blank for one that is no number."""
    numbers = [
        v if isinstance(v, (int, float)) and v == v and abs(v) != float("inf") else None for v in values[-WIDTH:]
    ]
    known = [v for v in numbers if v is not None]
    if not known:
        return ""
    low, high = min(known) / 2, max(known) / 2  # halves: the whole range of two floats may be infinite
    span = (high - low) or 1.0
    return "".join(" " if v is None else BARS[round((v / 2 - low) / span * (len(BARS) - 1))] for v in numbers)
