"""Searches combinations of methods: prune at rising ratios, fine-tune, quantize, and choose by the user's goal.

Every candidate is measured on val and saved in ``tries/<name>``. Running the same search again resumes it.

    frontier.json    every candidate, which of them are on the Pareto frontier, and which was chosen
    chosen           the artifact: an export folder, or ``chosen.pt``, a checkpoint
    tries/           each candidate's artifact, its training run if any, and its measurements
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bigmodel_cli.compress.candidate_files import MAX_STATE, died_of, write_json
from bigmodel_cli.compress.prune import write_pruned
from bigmodel_cli.compress.trial import Judge, Point
from bigmodel_cli.compress.work import Data, Events, Work, family, missing
from bigmodel_cli.core.current_step import current_step
from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.files.drafts import draft, exchange, remove_own, require_no_link
from bigmodel_cli.core.files.regular_files import read_regular
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import Entry, compressions
from bigmodel_cli.engine.build.digest import digest
from bigmodel_cli.engine.build.load import TrainedModel, load_trained
from bigmodel_cli.export.folder import first_line, is_export

RATIOS = (0.3, 0.5, 0.7, 0.85)
"""The fractions of each layer's channels to try pruning."""

SIZE_TOLERANCE = 1.1
"""Sizes within this factor count as equal."""


@dataclass(frozen=True)
class Goal:
    """Limits on the result: its size in bytes and its drop in the metric; None means no limit."""

    size: int | None = None
    drop: float | None = None

    def met(self, point: Point) -> bool:
        return (self.size is None or point.bytes <= self.size) and (self.drop is None or point.drop <= self.drop)

    def choose(self, points: Sequence[Point]) -> Point | None:
        """With a limit on the drop, the smallest point within it; otherwise the most accurate that is small enough.

        Among points within 10% of the smallest, the fastest one wins, since file size says nothing about speed.
        """
        good = [p for p in points if self.met(p)]
        if not good or self.drop is None:
            return min(good, key=lambda p: (p.drop, p.bytes), default=None)
        least = min(p.bytes for p in good)
        return max((p for p in good if p.bytes <= SIZE_TOLERANCE * least), key=lambda p: p.speedup)

    def nearest(self, points: Sequence[Point]) -> Point:
        """The best point if none meets the goal: the smallest drop that is small enough, else the smallest point."""
        small_enough = [p for p in points if self.size is None or p.bytes <= self.size]
        return min(small_enough or points, key=lambda p: (p.drop, p.bytes) if small_enough else (p.bytes, p.drop))

    def __str__(self) -> str:
        limits = [] if self.size is None else [f"{self.size / 1e6:.3g} MB"]
        limits += [] if self.drop is None else [f"a drop of {self.drop:g} points"]
        return " and ".join(limits)


@dataclass(frozen=True)
class Frontier:
    """The result of a search; `chosen` is None if nothing met the goal."""

    source: Point
    points: Sequence[Point]
    chosen: Point | None
    skipped: Sequence[str] = ()

    def best(self) -> list[Point]:
        """The Pareto frontier: the points that no other dominates in size, speed and accuracy."""
        return [p for p in self.points if not any(o.dominates(p) for o in self.points)]

    def to_dict(self) -> dict[str, Any]:
        best = {p.name for p in self.best()}
        return {
            "source": self.source.to_dict(),
            "points": [{**p.to_dict(), "frontier": p.name in best} for p in self.points],
            "chosen": self.chosen.to_dict() if self.chosen else None,
            "skipped": list(self.skipped),
        }


@dataclass
class Search:
    """One search in the folder `out`.

    Args:
        on_point: called with each point as soon as it is measured.
        repair: epochs, lr and batch_size of the fine-tuning after pruning.
    """

    source: TrainedModel
    recipe: Recipe
    out: Path
    goal: Goal
    events: Events
    on_point: Callable[[Point], None]
    repair: Mapping[str, Any]
    ratios: Sequence[float] = RATIOS
    skipped: list[str] = field(default_factory=list)

    def run(self) -> Frontier:
        """Measure the candidates and choose one.

        Raises:
            InputError: the folder holds a different search.
        """
        self._check_settings()
        self.data = Data(self.recipe, self.source.task.spec)
        self.judge = Judge.of(self.source, self.data)
        source = self._saved("source") or self._save(self.judge.point_of_source())
        points: list[Point] = []
        for point in self._candidates():
            points.append(point)
            self.on_point(point)
        if not points:
            raise MachineError("no compression method is available", "; ".join(self.skipped), install_line("compress"))
        found = Frontier(source, points, self.goal.choose(points), self.skipped)
        if found.chosen is not None:
            found = replace(found, chosen=self._copy_chosen(found.chosen))
        write_json(self.out / "frontier.json", found.to_dict())
        return found

    def _candidates(self) -> Iterator[Point]:
        """The source in every quantized variant, then the same for each pruning ratio.

        Stops once a higher ratio cannot help: the fine-tuned network exceeds the allowed drop, or, with a
        limit on size only, one is small enough.
        """
        yield from self._variants("", self.source)
        if not self._installed(compressions.get("prune")):
            return
        for ratio in self.ratios:
            cut = self._measure(f"cut-{ratio:g}", "checkpoint", partial(_cut, ratio), self.source)
            if cut is None:
                return
            yield cut
            name = f"prune-{ratio:g}"
            given = {"ratio": ratio, **self.repair}
            repaired = self._measure(name, "checkpoint", partial(_apply, compressions.get("prune"), given), self.source)
            if repaired is None:
                return
            yield repaired
            forms = list(self._variants(name + "+", load_trained(Path(repaired.path))))
            yield from forms
            if self.goal.drop is not None and repaired.drop > self.goal.drop:
                return
            if self.goal.drop is None and any(self.goal.met(p) for p in forms):
                return

    def _variants(self, prefix: str, trained: TrainedModel) -> Iterator[Point]:
        """`trained` in int8, each beside fp32 in the same runtime: the runtime's own speedup is not that of int8."""
        kind = trained.task.spec.kind
        runtimes: set[str] = set()
        if not prefix:
            runtimes.add("onnx")
            yield from self._fp32(prefix, "onnx", trained)
        static = [e for e in family("int8") if kind in e.meta["kinds"] and self._installed(e)]
        others = [compressions.get("int8-weights"), *([] if static else [compressions.get("dynamic-int8")])]
        for entry in [*static, *(e for e in others if self._installed(e))]:
            found = self._measure(prefix + entry.name, entry.meta["gives"], partial(_apply, entry, {}), trained)
            if found is None:
                continue
            if found.runtime is not None and found.runtime not in runtimes:
                runtimes.add(found.runtime)
                yield from self._fp32(prefix, found.runtime, trained)
            yield found

    def _fp32(self, prefix: str, runtime: str, trained: TrainedModel) -> Iterator[Point]:
        """`trained` as an fp32 export for `runtime`."""
        found = self._measure(f"{prefix}{runtime}-fp32", "export", partial(_plain_export, runtime), trained)
        if found is not None:
            yield found

    def _installed(self, entry: Entry) -> bool:
        absent = missing(entry)
        if absent and (line := f"{entry.name}: {', '.join(absent)} not installed") not in self.skipped:
            self.skipped.append(line)
        return not absent

    def _measure(self, name: str, gives: str, make: Callable[[Work], object], trained: TrainedModel) -> Point | None:
        """Make and measure ``tries/<name>``, unless it is saved; None if the model cannot be compressed this way."""
        known = self._saved(name)
        if known is not None:
            return known
        out = self.out / "tries" / name / ("export" if gives == "export" else "model.pt")
        self._own_folder(name)
        if (why := died_of(out.parent)) is not None:
            self.skipped.append(f"{name}: its process was ended by {why}")
            return None
        try:
            with current_step(str(out.parent)):
                make(Work(trained, self.recipe, self.data, out, self.events))
                return self._save(self.judge.point(name, out))
        except MachineError:
            raise
        except InputError as error:
            self.skipped.append(f"{name}: {error.line}")
        except Exception as error:  # foreign runtimes raise their own types
            if gives != "export":
                raise
            self.skipped.append(f"{name}: {type(error).__name__}: {first_line(error)[:150]}")
        return None

    def _saved(self, name: str) -> Point | None:
        file = self.out / "tries" / name / "point.json"
        if not file.is_file():
            return None
        try:
            return Point.from_dict(json.loads(read_regular(file, MAX_STATE)))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{file}: damaged", "expected a measurement", f"remove {file.parent}") from None

    def _own_folder(self, name: str) -> Path:
        """The folder of the candidate `name`, which is no link to another one."""
        folder = self.out / "tries" / name
        for path in (folder.parent, folder):
            require_no_link(path)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _save(self, point: Point) -> Point:
        folder = self._own_folder(point.name)
        write_json(folder / "point.json", point.to_dict())
        return point

    def _check_settings(self) -> None:
        """Check that the folder belongs to this search, so that no other checkpoint's results are reused."""
        ours = {"source": digest(self.source.model), "repair": dict(self.repair), "data": self.recipe.to_dict()["data"]}
        file = self.out / "search.json"
        if not file.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(file, ours)
        try:
            theirs = dict(json.loads(read_regular(file, MAX_STATE)))
        except (ValueError, TypeError):
            raise InputError(f"{file}: damaged", "expected the settings of a search", "--overwrite") from None
        different = [key for key, value in ours.items() if theirs.get(key) != value]
        if different:
            what = f"{self.out}: holds a search with another {different[0]}"
            raise InputError(what, "expected this search's own folder", "--overwrite, or another --out")

    def _copy_chosen(self, point: Point) -> Point:
        """Copy the artifact of `point` to ``chosen`` or ``chosen.pt``."""
        path = Path(point.path)
        target = self.out / ("chosen" if is_export(path) else "chosen.pt")
        if path.is_dir():
            with draft(target) as copy:
                shutil.copytree(path, copy, dirs_exist_ok=True)
                exchange(copy, target)
            (self.out / "chosen.pt").unlink(missing_ok=True)
        else:
            atomic_files.link(path, target)
            remove_own(self.out / "chosen")
        return replace(point, path=str(target))


def _apply(entry: Entry, given: Mapping[str, Any], work: Work) -> None:
    entry(work, **entry.options(dict(given), "compress"))


def _cut(ratio: float, work: Work) -> None:
    write_pruned(work, ratio, work.out)


def _plain_export(runtime: str, work: Work) -> None:
    from bigmodel_cli.export.proof import prove

    prove(work.subject(), runtime, work.out, overwrite=True, seconds=0.2)
