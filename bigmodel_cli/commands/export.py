"""``bigmodel export``: a file that another program runs, proven to answer like its source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt


def _formats(incomplete: str) -> list[str]:
    from bigmodel_cli.core.registry import exports

    return [n for n in exports.names() if n.startswith(incomplete)]


def export(
    checkpoint: opt.Checkpoint,
    format_name: Annotated[
        str, typer.Option("--format", help="onnx, pt2 or safetensors.", autocompletion=_formats)
    ] = "onnx",
    out: Annotated[Path | None, typer.Option("--out", help="File to write.  [default: beside CKPT]")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Real inputs to compare on.")] = 256,
    tolerance: Annotated[float, typer.Option("--tolerance", min=0, help="Largest difference of logits.")] = 1e-4,
    data_dir: opt.DataDir = None,
    assignments: opt.Set = None,
    json: opt.Json = False,
) -> None:
    """Export a checkpoint and prove it: both run on the same real inputs and must agree.

    The class names and the preprocessing go along, in the file and in a JSON beside it.

    Examples:

        bigmodel export runs/resnet18-digits-1/best.pt --format onnx

        bigmodel export ckpt.pt --format pt2 --out model.pt2
    """
    from bigmodel_cli.core.registry import exports
    from bigmodel_cli.engine.start import build_model, load_trained
    from bigmodel_cli.export.proof import export_and_prove

    entry = exports.get(format_name)
    trained = load_trained(checkpoint)
    path = out or trained.path.with_suffix(entry.meta["suffix"])
    spec = trained.task.spec
    carry = {
        "arch": trained.recipe.model.name,
        "arch_args": trained.recipe.model.options,
        "classes": list(spec.classes),
        "preprocess": trained.task.preprocessing(),
    }
    proof = export_and_prove(
        format_name,
        trained.model,
        _real_inputs(trained, samples, data_dir, assignments),
        path,
        carry,
        build=lambda: build_model(trained.recipe, spec),
        tolerance=tolerance,
    )
    _show(proof, json)
    if not proof.passed:
        raise typer.Exit(1)


def _real_inputs(trained: Any, samples: int, data_dir: Path | None, assignments: list[str] | None) -> list[Any]:
    """Prepared inputs from the validation split of the data that the checkpoint remembers."""
    import torch

    from bigmodel_cli.engine.assemble import load_data, split

    recipe = opt.recipe_of(trained, {"data_dir": data_dir}, assignments)
    source = split(load_data(recipe.data, trained.task.spec), recipe.data, "val")
    chosen = torch.arange(min(samples, len(source)))
    batches = (trained.task.prepare(source.gather(part)) for part in chosen.split(64))
    return [tuple(batch[name] for name in trained.task.inputs) for batch in batches]


def _show(proof: Any, json: bool) -> None:
    values = proof.to_dict()
    if json:
        console.print_json(values)
        return
    rows = [(k.replace("_", " "), f"{v:.3g}" if isinstance(v, float) else str(v)) for k, v in values.items()]
    console.show(console.table("proof", ("what", "value"), rows))
    if not proof.passed:
        console.note("the export does not answer like the checkpoint: nothing was written under its final name")
