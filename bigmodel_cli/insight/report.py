"""The page of a run: its result first, then curves, time, what it gets wrong, recipe, environment and data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import read_regular
from bigmodel_cli.insight import page
from bigmodel_cli.insight.charts import Series, line_chart
from bigmodel_cli.insight.page import Section
from bigmodel_cli.metrics.reading import bounds_of, format_metric

Event = Mapping[str, Any]
PHASES = {
    "data": "reading data", "prepare": "preparing and augmenting batches", "forward": "the forward pass",
    "backward": "the backward pass", "optimizer": "the optimizer", "saving": "writing checkpoints",
    "evaluation": "validation", "features": "computing features of the frozen part", "start": "starting",
}  # fmt: skip
MOST_BYTES = 1 << 26
STATES = {"running": "the run goes on; this page is rewritten as it does", "done": "the run is done"}


def write_report(
    path: Path,
    *,
    title: str,
    recipe_text: str,
    events: Sequence[Event],
    final: Mapping[str, Any],
    start: Mapping[str, Any] | None = None,
    state: str = "done",
    sections: Sequence[Section] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write the page atomically; all external text is escaped.

    Args:
        events: those of the run's log; epochs are drawn.
        final: the values of the end of the run; {} before that.
        start: the event that started the run, which says its size, environment and data.
        state: running, done, interrupted or failed.
        sections: figures on the validation split.
        notes: lines to know, such as what was not measured.

    Raises:
        MachineError: the disk is full, or the folder cannot be written.
    """
    start = start or {}
    epochs = [e for e in events if e.get("event") == "epoch"]
    parts: list[str | Section] = [page.note(STATES.get(state, f"the run was {state}; what it reached is below"))]
    parts += [page.tiles(_headline(epochs, final, start)), *(page.note(line) for line in notes)]
    parts.append(Section("Curves, by epoch", page.charts(_curves(epochs))))
    if time := _time(final):
        parts.append(Section("Where the time went", time))
    parts += sections
    results = {k.replace("_", " "): _shown(k, v) for k, v in final.items() if k not in NOT_RESULTS}
    if results:
        parts.append(Section("Results", page.facts(results)))
    if start:
        parts.append(Section("Data and machine", page.facts(_facts(start))))
    parts.append(Section("Recipe", f"<pre>{escape(recipe_text)}</pre>"))
    page.write(path, title, parts)


def says_done(path: Path) -> bool:
    """Whether the page at `path` is there, and is that of a run that was done."""
    try:
        return escape(STATES["done"]) in read_regular(path, MOST_BYTES).decode("utf-8", "replace")
    except InputError:
        return False


NOT_RESULTS = ("event", "time", "verdict")


def _headline(epochs: Sequence[Event], final: Mapping[str, Any], start: Event) -> list[tuple[str, str, str]]:
    """The metric that chooses the best epoch first, then the loss, the time and the size."""
    name = f"val_{start.get('metric', 'accuracy')}"
    best = next((e for e in reversed(epochs) if e.get("best")), epochs[-1] if epochs else {})
    values = final if name in final else best
    cells = []
    if _number(values.get(name)):
        where = values.get("best_epoch", values.get("epoch"))
        cells.append((name.replace("_", " "), format_metric(name, values[name]), f"best epoch: {where}"))
    if _number(values.get("val_loss")) and name != "val_loss":
        cells.append(("val loss", format_metric("val_loss", values["val_loss"]), "validation split"))
    if epochs:
        cells.append(("epochs", _of(epochs[-1].get("epoch"), start.get("epochs")), f"step {epochs[-1].get('step')}"))
    if _number(final.get("seconds")):
        cells.append(("time", _duration(final["seconds"]), "start to end"))
    if _number(start.get("parameters")):
        trained = start.get("trainable", start["parameters"])
        cells.append(("parameters", f"{start['parameters']:,}", f"{trained:,} trained"))
    return cells


def _of(value: Any, whole: Any) -> str:
    return f"{value} of {whole}" if whole is not None else str(value)


def _curves(epochs: Sequence[Event]) -> list[str]:
    names = [k for e in epochs for k in e if k.startswith("val_") and k != "val_loss"]
    drawn = [line_chart("loss", [_series(epochs, "train_loss"), _series(epochs, "val_loss")])]
    drawn += [
        line_chart(name.replace("_", " "), [_series(epochs, name)], within=bounds_of(name))
        for name in dict.fromkeys(names)
    ]
    rates = [k for e in epochs for k in e if k.endswith("_per_second")]
    drawn.append(line_chart("learning rate", [_series(epochs, "lr")]))
    drawn += [
        line_chart(f"throughput, {name.removesuffix('_per_second')} per second", [_series(epochs, name)])
        for name in dict.fromkeys(rates)
    ]
    return drawn


def _series(epochs: Sequence[Event], key: str) -> Series:
    """The finite values of `key` by epoch, since NaN cannot be plotted."""
    values = [(e.get("epoch"), e.get(key)) for e in epochs]
    return key.replace("_", " "), [(float(x), float(y)) for x, y in values if _number(x) and _number(y)]  # type: ignore[arg-type]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _time(final: Mapping[str, Any]) -> str:
    """The shares of the phases in words, and what would help."""
    shares = final.get("time")
    if not isinstance(shares, Mapping) or not shares:
        return ""
    seconds = final.get("seconds")
    named = [f"{share:.0%} in {PHASES.get(part, part)}" for part, share in shares.items() if share >= 0.01]
    whole = f"Of {_duration(seconds)}, " if isinstance(seconds, (int, float)) else "Of the time, "
    text = f"{whole}{', '.join(named)}."
    advice = str(final.get("verdict", "")).partition("; ")[2]
    return f"<p>{escape(text)}{escape(' ' + advice[:1].upper() + advice[1:] + '.') if advice else ''}</p>"


def _facts(start: Event) -> dict[str, str]:
    data = start.get("data")
    found = {
        "data": f"{data}: {start.get('train_size', 0):,} training and {start.get('val_size', 0):,} validation samples",
        "fingerprint of the data": str(start.get("fingerprint") or "not known"),
        "placement": str(start.get("placement", "")),
        **{k.replace("_", " "): _shown(k, v) for k, v in start.get("environment", {}).items()},
    }
    notes = {f"note {i}": str(line) for i, line in enumerate(start.get("notes", ()), 1)}
    return {k: v for k, v in (found | notes).items() if v}


def _shown(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_shown(k, v)}" for k, v in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "memory_peak" and isinstance(value, int):
        return f"{value / 1e6:,.0f} MB"
    return format_metric(name, value) if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
