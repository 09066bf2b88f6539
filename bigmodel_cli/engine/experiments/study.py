"""A study: several runs that are compared. Finished runs are not repeated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.files.drafts import require_no_link
from bigmodel_cli.core.files.event_log import MAX_STATUS, is_number, read_events, read_state
from bigmodel_cli.core.files.regular_files import read_regular
from bigmodel_cli.core.recipe import Component, Recipe, Section
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.strict_yaml import Document, read_yaml
from bigmodel_cli.engine.build.data import load_data, load_split
from bigmodel_cli.engine.build.load import load_trained
from bigmodel_cli.engine.device.placement import choose_placement
from bigmodel_cli.engine.device.process import configure_process
from bigmodel_cli.engine.session.run_folder import RunFolder
from bigmodel_cli.engine.session.session import train
from bigmodel_cli.engine.training.evaluate import evaluate
from bigmodel_cli.engine.training.run import Event

FOLDER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
Values = dict[str, dict[str, Any]]


class Study(Section):
    """A study file. `base` holds recipe sections, and each of `runs` overrides some of them.

    In a run's ``start``, ``"@name"`` is the best checkpoint of an earlier run.
    """

    title: str
    base: Values = Field(default_factory=dict)
    runs: dict[str, Values]
    test: bool = Field(False, description="measure each run's best checkpoint on the test split, once, at the end")
    figure: Component | None = None


def read_study(path: Path) -> Study:
    """Read the study in the file at `path`.

    Raises:
        InputError: the file is a recipe, or not a valid study.
    """
    document: Document = read_yaml(path)
    if "runs" not in document.values:
        raise InputError(f"{path}: no runs in it", "expected a study", f"bigmodel train {path}")
    try:
        study = Study(**document.values)
    except ValidationError as error:
        first = error.errors()[0]
        key = tuple(str(part) for part in first["loc"])
        where = f"{path}:{document.lines[key]}" if key in document.lines else str(path)
        problem = f"{where}: {'.'.join(key)}: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise InputError(problem, f"a study has {', '.join(Study.model_fields)}") from None
    for name in study.runs:
        if not FOLDER_NAME.fullmatch(name):  # a run is a folder: "../x" would be one elsewhere
            where = f"{path}:{document.lines.get(('runs', name), 1)}"
            raise InputError(f"{where}: a run named {name!r}", f"expected a name like {FOLDER_NAME.pattern}")
    return study


def recipes(study: Study, out: Path, flags: list[Layer]) -> dict[str, Recipe]:
    """Resolve the recipe of each run. All are checked before the first run starts."""
    resolved: dict[str, Recipe] = {}
    for name, changes in study.runs.items():
        start = {key: _resolve_reference(name, value, resolved, out) for key, value in changes.get("start", {}).items()}
        changes = {**changes, "start": start} if start else changes
        resolved[name] = resolve([Layer("base", study.base), Layer(f"run {name}", changes), *flags]).recipe
    return resolved


def _resolve_reference(run: str, value: Any, resolved: Mapping[str, Recipe], out: Path) -> Any:
    """Resolve ``@name`` to the best checkpoint of the earlier run `name`. Other values are returned unchanged."""
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    if value[1:] not in resolved:
        raise InputError(f"run {run}: {value}", "expected @ and the name of an earlier run")
    return str((out / value[1:] / "best.pt").resolve())


def run_study(
    study: Study, out: Path, flags: list[Layer], emit: Callable[[Event], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train the unfinished runs in order. Yields each run's name and results.

    Raises:
        InputError: the folder holds a run of the same name with a different recipe.
    """
    for name, recipe in recipes(study, out, flags).items():
        folder = out / name
        require_no_link(folder)
        if not is_done(folder, recipe):
            resume = (folder / "last.pt").exists()
            train(recipe, RunFolder(folder, resume=resume, overwrite=not resume), emit)
        yield name, {"run": name, **outcome(folder, recipe, study.test)}


def is_done(folder: Path, recipe: Recipe) -> bool:
    """Whether `folder` holds the finished run of `recipe`.

    Raises:
        InputError: it holds a run of another recipe.
    """
    if not (folder / "recipe.yaml").exists():
        return False
    # Resolve the saved recipe, so that fields newer than it have their defaults.
    made_from = Layer(str(folder / "recipe.yaml"), read_yaml(folder / "recipe.yaml").values)
    saved, current = resolve([made_from]).recipe.to_dict(), recipe.to_dict()
    for section, values in current.items():
        for key, value in values.items():
            before = saved.get(section, {}).get(key)
            if before != value and section != "placement" and (section, key) not in (("data", "dir"),):
                problem = f"{folder}: made with {section}.{key} = {before!r}, now {value!r}"
                raise InputError(problem[:150], "expected the same recipe", "give another --out")
    return read_state(folder) == "done"


def outcome(folder: Path, recipe: Recipe, test: bool) -> dict[str, Any]:
    """Read the results of a finished run. With `test`, add its metrics on the test split, which is evaluated once."""
    events = read_events(folder / "metrics.jsonl")
    start, end = (_last(folder, events, kind) for kind in ("start", "end"))
    epoch = _last(folder, events, "epoch")
    epochs = [e for e in events if e["event"] == "epoch"]
    results = {
        "model": recipe.model.name,
        "method": recipe.start.method if recipe.start.trained else "from zero",
        "parameters": _number(folder, start, "parameters"),
        "trained": _number(folder, start, "trainable"),
        "train_loss": _number(folder, epoch, "train_loss"),
        "metric": str(start.get("metric")),
        **{k: v for k, v in end.items() if k.startswith("val_") and (v is None or is_number(v))},
        "seconds": _number(folder, end, "seconds"),
        "epochs": epochs,
    }
    if test:
        results |= _test(folder, recipe)
    return results


def _last(folder: Path, events: list[dict[str, Any]], kind: str) -> Event:
    found = next((e for e in reversed(events) if e["event"] == kind), None)
    if found is None:
        what = f"{folder / 'metrics.jsonl'}: no {kind} event, though the run is done"
        raise InputError(what, "expected the log of the whole run", f"remove {folder} to run it again")
    return found


def _number(folder: Path, event: Event, key: str) -> float:
    """The number that the run logged as `key`."""
    value: Any = event.get(key)
    if not is_number(value):
        what = f"{folder / 'metrics.jsonl'}: no number {key} in its {event['event']} event"
        raise InputError(what, "expected the log of the whole run", f"remove {folder} to run it again")
    return value


def _test(folder: Path, recipe: Recipe) -> Mapping[str, float]:
    file = folder / "test.json"
    if not file.exists():
        trained, placement = load_trained(folder), choose_placement(recipe.placement)
        configure_process(placement)
        bundle = load_data(recipe.data, trained.task.spec, recipe.task)
        source, size = load_split(bundle, recipe.data, "test"), recipe.train.eval_batch_size
        task = trained.task.for_data(bundle.spec)
        metrics = evaluate(placement.model(trained.model), task, source, placement, size)
        atomic_files.write_text(file, json.dumps({f"test_{k}": v for k, v in (metrics or {}).items()}))
    try:
        found = json.loads(read_regular(file, MAX_STATUS))
        return {key: float(found[key]) for key in found}
    except (ValueError, TypeError, RecursionError, OverflowError):
        raise InputError(f"{file}: damaged", "expected the metrics of the test split", f"remove {file}") from None
