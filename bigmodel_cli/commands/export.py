"""``bigmodel export``: a folder that another program runs, proven to answer like its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt

if TYPE_CHECKING:
    from bigmodel_cli.engine.build.load import TrainedModel
    from bigmodel_cli.export.proof import Proof
    from bigmodel_cli.export.subject import Subject


def _formats(incomplete: str) -> list[str]:
    from bigmodel_cli.core.registry import exports

    return exports.matching(incomplete, start=True)


def export(
    checkpoint: opt.Checkpoint,
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx, pt2, aoti, openvino, torchscript, executorch, litert, coreml, safetensors, huggingface.",
            autocompletion=_formats,
        ),
    ] = "onnx",
    out: Annotated[Path | None, typer.Option("--out", help="Folder.  [default: CKPT's name and format]")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Real inputs to compare on.")] = 256,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", min=0, help="Largest difference of logits.  [default: the format's]")
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, help="How long both are timed at each batch size.")
    ] = 1.0,
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="Resize and normalise in the graph: it takes uint8 images.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the export in --out.")] = False,
    data_dir: opt.DataDir = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Format options (export.opset=20); recipe fields."),
    ] = None,
    json: opt.Json = False,
) -> None:
    """Export a checkpoint and prove it: both run on the same real inputs and must agree.

    A folder: the model, its class names and preprocessing, an example that runs it alone, a model card, the proof.

    Examples:

        bigmodel export runs/resnet18-digits-1/best.pt --format onnx

        bigmodel export ckpt.pt --format openvino --with-preprocessing --out shipped
    """
    from dataclasses import replace

    from bigmodel_cli.core.registry import exports
    from bigmodel_cli.engine.build.load import load_trained
    from bigmodel_cli.export.proof import prove
    from bigmodel_cli.export.publish import check_target

    entry = exports.get(format_name)
    own, assignments = _split(assignments)
    options = _options(entry, own)
    trained = load_trained(checkpoint)
    path = out or trained.path.with_name(f"{trained.path.stem}-{format_name}")
    check_target(path, overwrite)  # before the work
    proof = prove(
        replace(subject(trained, samples, data_dir, assignments), pixels=with_preprocessing),
        format_name,
        path,
        options=options,
        tolerance=tolerance,
        overwrite=overwrite,
        seconds=seconds,
    )
    if json:
        console.print_json(proof.to_dict())
    else:
        show(proof)
    if not proof.passed:
        raise typer.Exit(1)


def _split(assignments: list[str] | None) -> tuple[list[str], list[str]]:
    """``--set export.KEY=VALUE``, and what is for the recipe."""
    given = assignments or []
    own = [a for a in given if a.strip().startswith("export.")]
    return own, [a for a in given if a not in own]


def _options(entry: Any, assignments: list[str]) -> dict[str, Any]:
    """The format's options, checked by its signature.

    Raises:
        InputError: it has no such option, or the value is none for it.
    """
    from pydantic import ValidationError

    from bigmodel_cli.core.resolve import explain, set_layer

    values = dict(set_layer(assignments).values.get("export", {}))
    origin: dict[tuple[str, ...], str] = {("export", key): "--set" for key in values}
    try:
        return entry.options(values, "export")  # type: ignore[no-any-return]
    except ValidationError as error:
        raise explain(error, origin, "export", entry.schema.model_fields) from None


def subject(trained: TrainedModel, samples: int, data_dir: Path | None, assignments: list[str] | None) -> Subject:
    """The checkpoint as what an export is made of, with inputs from the validation split that it remembers."""
    import torch

    from bigmodel_cli.engine.build.data import load_data, load_split
    from bigmodel_cli.export.subject import Subject

    recipe = opt.recipe_of(trained, {"data_dir": data_dir}, assignments)
    bundle = load_data(recipe.data, trained.task.spec)
    source = load_split(bundle, recipe.data, "val")
    chosen = torch.arange(min(samples, len(source)))
    model = trained.model.cpu().float().eval()
    about = {
        **trained.source_metadata(),
        "data": {"fingerprint": bundle.fingerprint, "validation samples": len(source)},
    }
    raw = [source.gather(part) for part in chosen.split(64)]
    return Subject(model, trained.task.for_data(bundle.spec), raw, about)


def show(proof: Proof) -> None:
    """The proof as two tables: the checkpoint beside its export, and how they differ."""
    values = proof.to_dict()
    console.show(console.table(f"{proof.format}, on {proof.inputs} validation samples", *_table(values), right=True))
    console.show(console.table(None, ("proof", "found", "allowed"), _differences(proof)))
    if proof.passed:
        console.say(f"written: {proof.path}")
        return
    for line in proof.failed:
        console.note(line)
    console.note("the export does not answer like the checkpoint: nothing was written under its final name")


def _differences(proof: Proof) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("largest difference of a logit", f"{proof.largest_difference:.2g}", f"{proof.tolerance:g}"),
        ("mean difference", f"{proof.mean_difference:.2g}", ""),
        ("equal answers", f"{proof.equal_answers:.2%}", ""),
    ]
    if proof.other_sizes:
        apart, limit = (proof.other_sizes[k] for k in ("largest_difference", "tolerance"))
        rows.append((f"{proof.other_sizes['inputs']} images of other sizes", f"{apart:.2g}", f"{limit:g}"))
    if proof.example:
        rows.append(("example.py, run alone", f"{proof.example['answer']}", ""))
    return rows


def _table(values: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows = []
    for name, ours in values["metrics"]["checkpoint"].items():
        theirs = values["metrics"]["export"][name]
        form = "{:.2%}" if name == "accuracy" else "{:.4g}"
        rows.append((name, *(_figure(form, f) for f in (ours, theirs))))
    rows.append(("size", *(f"{values['size'][w] / 1e6:.2f} MB" for w in ("checkpoint", "export"))))
    speed = values["speed"]
    for size in speed["checkpoint"]:
        both = [speed[w][size] for w in ("checkpoint", "export")]
        rows.append((f"batch {size}: p50", *(f"{b['p50_ms']:.2f} ms" for b in both)))
        rows.append((f"batch {size}: p95", *(f"{b['p95_ms']:.2f} ms" for b in both)))
        rows.append((f"batch {size}: a second", *(f"{b['per_second']:,.0f}" for b in both)))
    return ("", "checkpoint", "export"), rows


def _figure(form: str, figure: dict[str, Any]) -> str:
    value, low, high = ("?" if figure[k] is None else form.format(figure[k]) for k in ("value", "low", "high"))
    return f"{value} ({low} .. {high})"
