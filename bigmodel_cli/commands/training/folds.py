"""``--folds K``: a run for each part of train that it does not see, what they say together, and their ensemble."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.training.folds_page import PAGE, write_page
from bigmodel_cli.core.errors import CommandEnd, InputError
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.metrics.reading import format_interval, format_metric

if TYPE_CHECKING:
    from bigmodel_cli.commands.arguments.options import RunOptions
    from bigmodel_cli.commands.evaluation.measuring import SplitOfData
    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.core.resolve import Resolved
    from bigmodel_cli.insight.cross_validation import Part

TABLE, SUMMARY = "out-of-fold.csv", "folds.json"


def train_folds(resolved: Resolved, options: RunOptions, stem: str) -> None:
    """Train the runs of cross-validation one after another; those that are finished are kept.

    Raises:
        InputError: several processes are asked for, or privacy; the folder is in use, or the data cannot be folded.
        InterruptedRun: a signal stopped one of them; its state is saved.
    """
    from bigmodel_cli.engine.build.data import reading_once

    recipe = resolved.recipe
    if options.launch().requested:
        hint = "one at a time: --set data.hold_out=1 --nproc N --out ..."
        raise InputError("--folds trains in one process", "expected no --nproc, --nnodes, --rdzv", hint)
    if options.dry_run:
        from bigmodel_cli.commands.training.dry_run import preflight

        console.note(f"one of {recipe.data.folds} runs, that without fold 1:")
        preflight(replace(resolved, recipe=recipe.of_fold(1)), options.out or Path("runs"), options.json)
        return
    if recipe.privacy.epsilon is not None:
        hint = "one run: without --folds"
        raise InputError("--folds with --private", "what runs on the same samples spend would add up", hint)
    _check_task(recipe)
    with _folder(options, f"{stem}-folds") as folder:
        with reading_once():
            for fold in _folds(recipe):
                _train_one(recipe, fold, folder, options)
        summary = _conclude(recipe, folder)
    if options.json:
        console.print_json(summary)
    else:
        _show(recipe, summary)


def _folds(recipe: Recipe) -> range:
    return range(1, (recipe.data.folds or 0) + 1)


def _check_task(recipe: Recipe) -> None:
    """Raises InputError before any run where answers of the task cannot be put together."""
    from bigmodel_cli.core.registry import tasks
    from bigmodel_cli.engine.build.model import task_name

    name = task_name(recipe)
    if tasks.get(name).meta.get("answers") not in ("classes", "labels", "numbers"):
        what = f"--folds for {name.replace('_', ' ')}"
        raise InputError(what, "expected classes, labels or numbers: other samples overlap or depend on each other")


@contextlib.contextmanager
def _folder(options: RunOptions, stem: str) -> Iterator[Path]:
    """The folder of the runs, which is left as it was if the first of them cannot be built."""
    from bigmodel_cli.engine.session.run_folder import RunFolder

    folder = options.out
    if folder is None:
        folder = RunFolder(None, stem).make()
    elif not options.resume:
        RunFolder(folder, overwrite=options.overwrite)  # only to check it
        for name in (TABLE, SUMMARY, PAGE, "best.pt", "recipe.yaml"):  # of the runs that are replaced
            (folder / name).unlink(missing_ok=True)
    elif not any(folder.glob("fold-*")):
        raise InputError(f"{folder}: no folds to resume", hint="start again without --resume")
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # if there is nothing in it


def _train_one(recipe: Recipe, fold: int, folder: Path, options: RunOptions) -> None:
    from bigmodel_cli.commands.display.progress import WaitBars, for_output
    from bigmodel_cli.commands.training.page import RunPage
    from bigmodel_cli.commands.training.run import train_recipe
    from bigmodel_cli.core.strict_yaml import dump_yaml
    from bigmodel_cli.engine.experiments.study import is_done
    from bigmodel_cli.engine.session.loggers import Loggers
    from bigmodel_cli.engine.session.run_folder import RunFolder

    one, own = recipe.of_fold(fold), folder / f"fold-{fold}"
    if not options.overwrite and is_done(own, one):
        console.note(f"fold {fold} of {recipe.data.folds}: done already")
        RunPage().complete(own)
        return
    console.note(f"fold {fold} of {recipe.data.folds}")
    resume = not options.overwrite and any(own.glob("*.pt"))
    loggers = Loggers(options.log or (), console.note)
    run = RunFolder(own, resume=resume, overwrite=not resume, loggers=loggers)

    def keep_recipe() -> None:  # what `--resume` reads; a run that could not be built leaves nothing
        atomic_files.write_text(folder / "recipe.yaml", dump_yaml(recipe.to_dict()))

    try:
        with WaitBars():
            outcome = train_recipe(one, run, for_output(options.json), started=keep_recipe)
    except CommandEnd as error:
        if (folder / "recipe.yaml").exists():
            error.hint = f"bigmodel train --resume --out {folder}"
        raise
    if options.json:
        console.print_json({"fold": fold, **outcome.to_dict()})


def _conclude(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Measure each run on what it held out, write the table of all answers and the ensemble, and say what it all says.

    Samples of val chose the epoch of every run and are in none; their answers are the mean of all runs.
    """
    import json

    import numpy

    from bigmodel_cli.engine.experiments.ensemble import average_answers
    from bigmodel_cli.insight.cross_validation import HOW, corrected, out_of_fold_csv
    from bigmodel_cli.metrics.intervals import measure

    parts: list[Part] = []
    of_val: list[Part] = []
    found: list[dict[str, float]] = []
    for fold in _folds(recipe):
        measured = _open(folder / f"fold-{fold}", "fold")
        parts.append(_part(measured, str(fold)))
        figures = measure(measured.task.metrics, parts[-1].outputs, resamples=0)
        found.append({name: figure.value for name, figure in figures.items()})
        of_val.append(_part(measured.other("val"), "val"))
    task = measured.task
    mean = replace(of_val[0], values=numpy.mean([part.values for part in of_val], axis=0))
    carved = "val" not in measured.bundle.load
    atomic_files.write_text(folder / TABLE, out_of_fold_csv(task, [*parts, *([mean] if carved else [])]))
    notes = average_answers([folder / f"fold-{fold}" for fold in _folds(recipe)], folder / "best.pt")
    shared = [name for name in found[0] if all(name in figures for figures in found)]
    summary = {
        "event": "folds",
        "folder": str(folder),
        "checkpoint": str(folder / "best.pt"),
        "out_of_fold": str(folder / TABLE),
        "page": str(folder / PAGE),
        "samples": sum(len(part.places) for part in parts),
        "metrics": {name: corrected(name, [figures[name] for figures in found]).to_dict() for name in shared},
        "interval": HOW,
        "folds": [
            {"fold": k, "samples": len(p.places), **f} for k, p, f in zip(_folds(recipe), parts, found, strict=True)
        ],
        "notes": [*_notes(measured, recipe, len(mean.places) if carved else 0), *notes],
    }
    write_page(recipe, summary, measured, parts)
    atomic_files.write_text(folder / SUMMARY, json.dumps(summary, indent=1))
    return summary


def _open(run: Path, split: str) -> SplitOfData:
    from bigmodel_cli.commands.arguments.open_model import open_trained
    from bigmodel_cli.commands.arguments.recipe_layers import checkpoint_recipe
    from bigmodel_cli.commands.evaluation.measuring import open_split

    trained = open_trained(run)
    return open_split(trained, checkpoint_recipe(trained, []), split)


def _part(measured: SplitOfData, fold: str) -> Part:
    from bigmodel_cli.data.subset import Subset
    from bigmodel_cli.insight.cross_validation import Part, values_of

    out = measured.outputs(measured.recipe.train.eval_batch_size)
    order = out["index"].argsort()
    out = {key: value[order] for key, value in out.items()}
    source = measured.source
    places = source.indices.tolist() if isinstance(source, Subset) else list(range(len(source)))
    names = [source.name(i) for i in range(len(source))]
    return Part(fold, places, names, out, values_of(measured.task, out))


def _notes(measured: SplitOfData, recipe: Recipe, in_val: int) -> list[str]:
    from bigmodel_cli.data.folds import rare_classes
    from bigmodel_cli.engine.build.data import pool_and_val

    pool, _ = pool_and_val(measured.bundle, measured.recipe.data)
    rare = [measured.bundle.spec.classes[i] for i in rare_classes(pool, recipe.data.folds or 0)]
    notes = [f"fewer samples than folds, so that some folds have none: {', '.join(rare[:5])}"] if rare else []
    if in_val:
        chose = f"{in_val:,} samples of val chose the epochs: in {TABLE} they have the mean of all runs, fold val"
        notes.append(chose)
    return notes


def _show(recipe: Recipe, summary: dict[str, Any]) -> None:
    names: Sequence[str] = list(summary["metrics"])
    rows = [
        (str(one["fold"]), f"{one['samples']:,}", *(format_metric(name, one[name]) for name in names))
        for one in summary["folds"]
    ]
    heads = ("fold", "samples", *(name.replace("_", " ") for name in names))
    console.show(console.table(f"{recipe.model.name}, each fold by the run that held it out", heads, rows, right=True))
    for name in names:
        console.say(f"{name.replace('_', ' ')}: {format_interval(name, summary['metrics'][name])}")
    console.say(f"interval: {summary['interval']}", prose=True)
    for note in summary["notes"]:
        console.note(note)
    console.say(f"out-of-fold predictions: {summary['out_of_fold']}")
    console.say(f"report: {summary['page']}")
    console.say(f"the ensemble of all folds: {summary['checkpoint']}")
    console.say(f"next: bigmodel eval {summary['folder']} --split test")
