"""``report.html`` of a run: written from its first epoch on, with figures on the validation split at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import BigmodelError
from bigmodel_cli.core.files.event_log import read_events, read_state

if TYPE_CHECKING:
    from bigmodel_cli.core.types import Source
    from bigmodel_cli.engine.session.session import Outcome
    from bigmodel_cli.insight.page import Section

Event = dict[str, Any]
REST = 20  # the page takes at most a twentieth of the time
MOST_SAMPLES = 10_000
"""The most validation samples that figures at the end of a run are from; a report may say fewer: `run_samples`."""
MOST_BYTES, MOST_SECONDS = 1 << 30, 60
"""Of a checkpoint that is loaded again for them, and of the forward passes."""


class RunPage:
    """Receives the events of a run, or of several in turn, and keeps the page of each up to date.

    A page that cannot be written is given up, with a line.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.start: Event = {}
        self.events: list[Event] = []
        self._next = 0.0
        self._broken = False

    def emit(self, event: Event) -> None:
        if event["event"] == "start":
            self.stopped()  # the run before this one, in a study
            self.start, self.folder = event, Path(event["folder"])
            log = self.folder / "metrics.jsonl"
            self.events = read_events(log) if log.is_file() else []  # a resumed run has epochs already
        elif event["event"] == "epoch":
            kept = [e for e in self.events if e["event"] == "epoch" and e.get("epoch", 0) < event["epoch"]]
            self.events = [*kept, event]
            if time.perf_counter() >= self._next:
                started = time.perf_counter()
                self.write("running")
                self._next = time.perf_counter() + REST * (time.perf_counter() - started)

    def write(self, state: str, final: Event | None = None, sections: list[Section] | None = None) -> None:
        """Write the page as far as the run is known."""
        from bigmodel_cli.core.files.regular_files import read_regular
        from bigmodel_cli.core.strict_yaml import MAX_BYTES
        from bigmodel_cli.insight.report import write_report

        if self.folder is None or self._broken:
            return
        try:
            write_report(
                self.folder / "report.html",
                title=f"{self.start['model']} on {self.start['data']}",
                recipe_text=read_regular(self.folder / "recipe.yaml", MAX_BYTES).decode("utf-8", "replace"),
                events=self.events,
                final=final or {},
                start=self.start,
                state=state,
                sections=sections or (),
            )
        except BigmodelError as error:
            self._broken = True
            console.note(f"warning: no report.html: {error.line}")

    def stopped(self) -> None:
        """The run has ended, perhaps with an error or a signal: its status says how."""
        if self.folder is not None and any(e["event"] == "epoch" for e in self.events):
            log = self.folder / "metrics.jsonl"  # gone, where that is why the run ends
            ends = [e for e in read_events(log) if e["event"] == "end"] if log.is_file() else []
            self.write(read_state(self.folder) or "failed", ends[-1] if ends else None)

    def complete(self, folder: Path) -> None:
        """The run in `folder` is done: write the page that says so, unless it is there.

        Whoever trained it may have been killed between the two, and left the draft of the page.
        """
        from bigmodel_cli.core.files.atomic_files import remove_temporary_files
        from bigmodel_cli.insight.report import says_done

        remove_temporary_files(folder)
        log = folder / "metrics.jsonl"
        if log.is_file() and not says_done(folder / "report.html"):
            starts = [e for e in read_events(log) if e["event"] == "start"]
            self.folder = None  # the page of the run before this one is written
            for start in starts[-1:]:  # none in a log that is cut off: whoever needs its figures says so
                self.emit({**start, "folder": str(folder)})
                self.stopped()
        self.folder = None

    def finished(self, outcome: Outcome) -> None:
        """The last page, with figures of the best checkpoint on the validation split."""
        sections: list[Section] = []
        if not self._broken:
            try:
                sections = val_sections(outcome)
            except BigmodelError as error:
                console.note(f"the report has no figures of samples: {error.line}")
        self.write("done", outcome.to_dict(), sections)


def both(first: Callable[[Event], None], second: Callable[[Event], None]) -> Callable[[Event], None]:
    """Passes each event to both."""

    def emit(event: Event) -> None:
        first(event)
        second(event)

    return emit


def val_sections(outcome: Outcome) -> list[Section]:
    """The figures of the best checkpoint on the validation split, on a part of it if it is large.

    Empty for a model that is spread over several processes, and for a task without figures.
    """
    import torch

    from bigmodel_cli.core.registry import report_figures, reports
    from bigmodel_cli.data.subset import Subset
    from bigmodel_cli.engine.build.data import load_data, load_split
    from bigmodel_cli.engine.build.load import load_trained
    from bigmodel_cli.engine.build.model import build_spec
    from bigmodel_cli.engine.checkpoint.sharded import is_sharded
    from bigmodel_cli.engine.training.evaluate import split_outputs
    from bigmodel_cli.insight.evaluated import Evaluated, evenly, sections
    from bigmodel_cli.insight.page import Section, note

    run = outcome.run
    name = run.task.report
    if run.parallel.group.world > 1 or is_sharded(outcome.best) or outcome.best.stat().st_size > MOST_BYTES:
        line = f"Figures of samples: bigmodel eval {outcome.best}"  # a second copy of the model may not fit
        return [Section("On the validation split", note(line))]
    if not any(name in entry.meta["of"] for entry in report_figures.found.values()):
        return []
    trained = load_trained(outcome.best)
    source: Source = run.val
    if run.submodule:  # the run saw features of its samples
        source = load_split(load_data(run.recipe.data, trained.task.spec, run.recipe.task), run.recipe.data, "val")
    spec: Any = build_spec({"kind": run.meta["input"]["kind"], **run.meta["data"]["spec"]}, str(outcome.best))
    entry, whole = reports.get(name), len(source)
    most = min(MOST_SAMPLES, entry.meta.get("run_samples", MOST_SAMPLES))
    pass_seconds = run.timer.seconds.get("evaluation", 0.0) / max(1, run.progress.epoch)
    if pass_seconds > MOST_SECONDS:
        most = min(most, max(1, int(whole * MOST_SECONDS / pass_seconds)))
    if whole > most:
        source = Subset(source, torch.tensor(list(evenly(whole, most))))
    task = trained.task.for_data(spec)
    model = run.placement.model(trained.model)
    outputs = split_outputs(model, task, source, run.placement, run.recipe.train.eval_batch_size)
    assert outputs is not None
    report = entry(task, spec, source, lambda: outputs, 0, trained.task.metrics)
    found = sections(name, Evaluated(task, spec, source, outputs, report.values))
    part = f"{most:,} of the {whole:,}" if whole > most else f"the {whole:,}"
    return [Section("On the validation split", note(f"The best checkpoint on {part} samples.")), *found]
