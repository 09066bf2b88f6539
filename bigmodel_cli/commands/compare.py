"""``bigmodel compare``: what differs between runs, and whether the better one is better."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.arguments.options import RunOptions
from bigmodel_cli.commands.arguments.signatures import takes_options
from bigmodel_cli.commands.comparison.compared import Compared, cell, short, verdict
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.pages import require_place, written
from bigmodel_cli.commands.isolation.foreign_runtime import runs_export, runtime_died
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from bigmodel_cli.commands.evaluation.measuring import SplitOfData
    from bigmodel_cli.core.types import Source

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Two or more runs, checkpoints or exports.")]
Split = Annotated[str | None, typer.Option("--split", metavar="NAME", help="Split to compare on.  [default: val]")]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="Metric that decides.  [default: the one that chose the best epoch]",
        autocompletion=opt.complete("metrics"),
    ),
]
Page = Annotated[
    Path | None, typer.Option("--page", metavar="FILE", help="HTML page to write.  [default: compare.html]")
]
PATHS = ("data.dir", "data.path")
READ_FROM = ("name", "path", "target", "columns", "encoding", "separator", "group_by", "users", "items")
"""What says where data is and how its tables are read; the size of images, say, is each model's own."""


@commands.register(order=65, died=runtime_died, supervised_when=runs_export)
@takes_options("compare", data="the first run's", device="the first run's")
def compare(
    *,
    runs: Runs,
    options: RunOptions,
    split: Split = None,
    metric: Metric = None,
    trust: opt.Trust = False,
    page: Page = None,
    json: opt.Json = False,
) -> None:
    """Compare runs on the same samples: what differs in their recipes, and whether the better one is better.

    The test is paired: McNemar's for right and wrong answers, else the bootstrap; corrected where there are many
    pairs. Runs of other data, checkpoints and exports can be compared too, on --data.

    Examples:

        bigmodel compare runs/mlp-digits-1 runs/resnet18-digits-1

        bigmodel compare runs/* --split test --json
    """
    from bigmodel_cli.commands.comparison.page import write_page

    if len(runs) < 2:
        raise InputError("one run", "expected two or more to compare", "bigmodel compare RUN RUN")
    require_place(page)
    found = _compare(runs, options, split, metric, trust)
    place = page or Path("compare.html")
    shown, problem = written(place, page is not None, lambda path: write_page(path, found))
    _report(found, shown, json)
    if problem is not None:
        raise problem


def _report(found: Compared, page: str | None, json: bool) -> None:
    if json:
        console.print_json(_plain(found, page))
        return
    for note in found.notes:
        console.note(note)
    _show(found)
    if page is not None:
        console.say(f"page: {page}")
    better = [pair.better for pair in found.pairs if pair.better is not None]
    console.note_next(found.splits[max(better, key=better.count, default=0)].trained.path, "export", "--out", "shipped")


def _compare(runs: list[Path], options: RunOptions, split: str | None, metric: str | None, trust: bool) -> Compared:
    from bigmodel_cli.core.registry import metrics
    from bigmodel_cli.insight.comparison import compare_pairs, recipe_differences
    from bigmodel_cli.metrics.intervals import measure, statistics_of

    splits, names = _open(runs, options, split, trust), _names(runs)
    task = splits[0].task
    known = list(task.metrics)
    chosen = metrics.get(metric).name if metric else (task.best[0] if task.best[0] in known else known[0])
    outputs = []
    for name, measured in zip(names, splits, strict=True):
        out = measured.outputs(measured.recipe.train.eval_batch_size)
        order = out["index"].argsort()
        outputs.append({key: value[order] for key, value in out.items()})
        if len(order) != len(outputs[0]["index"]):
            what = f"{name}: {len(order)} samples, {names[0]} has {len(outputs[0]['index'])}"
            raise InputError(what, "expected the same samples: windows of text depend on the context of a model")
    outputs = _of_shared_classes(outputs)
    defined = [name for name in dict.fromkeys([chosen, *known]) if all(statistics_of([name], out) for out in outputs)]
    undefined = [f"{chosen} is not defined for these samples"] if chosen not in defined and not metric else []
    chosen = defined[0] if undefined and defined else chosen
    wanted = [name for name in dict.fromkeys([chosen, *known]) if name == chosen or name in known]
    figures = [measure([n for n in wanted if n == chosen or n in s.task.metrics], out)
               for s, out in zip(splits, outputs, strict=True)]  # fmt: skip
    recipes = [s.trained.meta["recipe"] for s in splits]
    differences = recipe_differences(recipes)
    notes = [*undefined, *_notes(names, splits, differences), *dict.fromkeys(n for s in splits for n in s.notes)]
    return Compared(names, splits, chosen, figures, compare_pairs(chosen, outputs), differences, notes)


def _open(runs: list[Path], options: RunOptions, split: str | None, trust: bool) -> list[SplitOfData]:
    """Each model with the same split of the same data: that of ``--data``, else of the first run."""
    from bigmodel_cli.commands.arguments.open_model import open_trained
    from bigmodel_cli.commands.arguments.recipe_layers import Known, checkpoint_recipe
    from bigmodel_cli.commands.evaluation.measuring import open_split
    from bigmodel_cli.core.resolve import Layer
    from bigmodel_cli.engine.build.data import is_same_data

    opened: list[SplitOfData] = []
    for run in runs:
        trained = open_trained(run, trust)
        known = Known.of((opened[0] if opened else trained).recipe.to_dict()["data"])
        layers = options.flag_layers(known)
        if opened:
            first = opened[0]
            if trained.task.report != first.task.report:
                what = f"{run} is for {trained.task.name.replace('_', ' ')}"
                raise InputError(what, f"{runs[0]} is for {first.task.name.replace('_', ' ')}")
            shared = ("val_fraction", "split_seed", "carve", "dir")
            values: dict[str, Any] = {key: first.recipe.to_dict()["data"][key] for key in shared}
            if not is_same_data(trained.meta.get("data") or {}, first.recipe.data) and not options.data:
                values |= {k: v for k, v in first.recipe.to_dict()["data"].items() if k in READ_FROM}
            layers = [Layer("the first run", {"data": values}), *layers]
        measured = open_split(
            trained, checkpoint_recipe(trained, layers), split or (opened[0].name if opened else None)
        )
        if opened and measured.bundle.fingerprint != opened[0].bundle.fingerprint:
            raise InputError(f"{run}: its data is not that of {runs[0]}", "expected the same data", "--data DATA")
        if opened and not _same_samples(measured.source, opened[0].source):
            what = f"{run}: its {measured.name} split has other samples than that of {runs[0]}"
            raise InputError(what, "expected the same samples", "--split val")
        opened.append(measured)
    return opened


def _same_samples(one: Source, other: Source) -> bool:
    """Whether two splits of the same data hold the same samples; folds of one size do not."""
    import torch

    from bigmodel_cli.data.subset import Subset

    if isinstance(one, Subset) and isinstance(other, Subset):
        return torch.equal(one.indices, other.indices)
    return isinstance(one, Subset) == isinstance(other, Subset)


def _of_shared_classes(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples whose class every model knows."""
    if not all("label" in out and out["label"].dim() == 1 for out in outputs):
        return outputs
    known = outputs[0]["label"] >= 0
    for out in outputs[1:]:
        known = known & (out["label"] >= 0)
    if not known.any():
        raise InputError("no sample is of a class that all models know", "expected models with classes in common")
    return [{key: value[known] for key, value in out.items()} for out in outputs]


def _names(runs: list[Path]) -> list[str]:
    """Short names that differ: the folder of a run, the file of a checkpoint."""
    short = [run.parent.name if run.name == "best.pt" and run.parent.name else run.name for run in runs]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


def _notes(names: list[str], splits: list[SplitOfData], differences: dict[str, list[Any]]) -> list[str]:
    notes = []
    if differences and set(differences) <= {"train.seed"}:
        notes.append("the runs differ in their seed only: what differs in their results is chance")
    for key in ("data.split_seed", "data.val_fraction", "data.carve"):
        if key in differences and splits[0].name in ("val", "train"):
            notes.append(f"{key} differs: some of these samples may be among those that another run was trained on")
    digests = [s.trained.meta.get("data", {}).get("fingerprint") for s in splits]
    strangers = [n for n, d in zip(names, digests, strict=True) if d is not None and d != splits[0].bundle.fingerprint]
    return notes + ([f"trained on other data: {', '.join(strangers)}"] if strangers else [])


def _show(found: Compared) -> None:
    if found.differences:
        rows = [(key, *(short(v) for v in values)) for key, values in found.differences.items() if key not in PATHS]
        console.show(console.table("what differs in the recipes", ("", *found.names), rows))
    metrics = dict.fromkeys(name for figures in found.figures for name in figures)
    rows = [(n, *(cell(figures, n) for figures in found.figures)) for n in metrics]
    title = f"{found.splits[0].recipe.data.shown}, {found.splits[0].says}"
    console.show(console.table(title, ("", *found.names), rows, right=True))
    for pair in found.pairs:
        console.say(verdict(found, pair), prose=True)
    if len(found.pairs) > 1:
        console.say(f"p holds for all {len(found.pairs)} pairs together (Holm)")


def _plain(found: Compared, page: str | None) -> dict[str, Any]:
    return {
        "runs": [str(s.trained.path) for s in found.splits],
        "split": found.splits[0].name,
        "samples": len(found.splits[0].source),
        "metric": found.metric,
        "differences": found.differences,
        "headline": [{name: f.to_dict() for name, f in figures.items()} for figures in found.figures],
        "pairs": [{**pair.to_dict(), "verdict": verdict(found, pair)} for pair in found.pairs],
        "notes": found.notes,
        "page": page,
    }
