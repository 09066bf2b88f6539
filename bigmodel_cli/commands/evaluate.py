"""``bigmodel eval``: how good a checkpoint is on a split, with intervals, and what it gets wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt

if TYPE_CHECKING:
    from bigmodel_cli.engine.start import Trained
    from bigmodel_cli.insight.classification import ClassificationReport


def evaluate(
    checkpoint: opt.Checkpoint,
    data: opt.Data = None,
    split: Annotated[Literal["val", "test", "train"], typer.Option("--split", help="Which split.")] = "val",
    data_dir: opt.DataDir = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    batch_size: opt.BatchSize = None,
    wrong: Annotated[int, typer.Option("--wrong", min=0, help="How many wrong predictions to list.")] = 10,
    assignments: opt.Set = None,
    json: opt.Json = False,
) -> None:
    """Evaluate a checkpoint: loss, top-1, top-5, calibration, each class, the confusion matrix, the wrong ones.

    The test split is read here and nowhere else.

    Examples:

        bigmodel eval runs/resnet18-digits-1/best.pt --split test

        bigmodel eval ckpt.pt --data mnist --json
    """
    from bigmodel_cli.engine.start import load_trained

    flags = {"data": data, "data_dir": data_dir, "device": device, "precision": precision}
    trained = load_trained(checkpoint)
    report, notes, names = _measure(trained, flags, assignments, split, batch_size)
    mistakes = [
        {"name": names[i], "true": t, "predicted": p, "confidence": c} for i, t, p, c in report.wrong[: wrong or None]
    ][: wrong or 0]
    if json:
        console.print_json(
            {"checkpoint": str(trained.path), "split": split, "notes": notes, **report.to_dict(), "wrong": mistakes}
        )
        return
    for note in notes:
        console.note(note)
    _show(report, f"{trained.recipe.model.name}, {split} split", mistakes)


def _measure(
    trained: Trained, flags: dict[str, Any], assignments: list[str] | None, split: str, batch_size: int | None
) -> tuple[ClassificationReport, list[str], Any]:
    from bigmodel_cli.engine.assemble import load_data
    from bigmodel_cli.engine.assemble import split as load_split
    from bigmodel_cli.engine.evaluate import collect
    from bigmodel_cli.engine.placement import place
    from bigmodel_cli.insight.class_match import match_classes
    from bigmodel_cli.insight.classification import classification_report

    recipe = opt.recipe_of(trained, flags, assignments)
    placement = place(recipe.placement)
    bundle = load_data(recipe.data)
    match = match_classes(trained.task.spec.classes, bundle.spec.classes)  # type: ignore[attr-defined]
    source = load_split(bundle, recipe.data, split)
    model = placement.model(trained.model)
    size = batch_size or recipe.train.eval_batch_size
    free = recipe.placement.precision == "auto"
    out, how = collect(model, trained.task.for_data(bundle.spec), source, placement, size, free)
    report = classification_report(out["logits"], out["label"], out["loss"], trained.task.spec.classes)
    notes = [*bundle.notes, *filter(None, [how])]
    if match.missing:
        notes.append(f"classes of the model that the data lacks: {', '.join(match.missing)}")
    if match.unseen:
        notes.append(f"classes the model never saw, left out of the figures: {', '.join(match.unseen)}")
    return report, notes, Names(source)


class Names:
    """Sample names by index, asked for one at a time."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __getitem__(self, index: int) -> str:
        return str(self.source.name(index))


def _show(report: ClassificationReport, title: str, mistakes: list[dict[str, Any]]) -> None:
    figures = report.to_dict()
    rows = []
    for name, figure in figures["headline"].items():
        percent = name.startswith("top")
        shown = [f"{v:.2%}" if percent else f"{v:.4f}" for v in (figure["value"], figure["low"], figure["high"])]
        rows.append((name, shown[0], f"{shown[1]} .. {shown[2]}"))
    console.show(console.table(title, ("metric", "value", "95% interval"), rows, right=True))
    per_class = [
        (
            c["class"],
            *("-" if c[k] is None else f"{c[k]:.4f}" for k in ("precision", "recall", "f1")),
            f"{c['support']:,}",
        )
        for c in figures["per_class"]
    ]
    console.show(console.table(None, ("class", "precision", "recall", "F1", "samples"), per_class, right=True))
    classes = [c["class"] for c in figures["per_class"]]
    if len(classes) <= 20:
        matrix = [
            (c, *(str(n) if n else "·" for n in row)) for c, row in zip(classes, figures["confusion"], strict=True)
        ]
        console.show(console.table("rows are true, columns predicted", ("", *classes), matrix, right=True))
    if mistakes:
        wrong = [(m["name"], m["true"], m["predicted"], f"{m['confidence']:.2%}") for m in mistakes]
        console.show(console.table("wrong, most confident first", ("sample", "true", "predicted", "confidence"), wrong))
