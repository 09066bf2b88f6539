"""``--dry-run``: the resolved recipe with the origin of each value, the model, and the cost of the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.progress import duration
from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.metrics.reading import format_metric

if TYPE_CHECKING:
    from bigmodel_cli.core.resolve import Resolved
    from bigmodel_cli.engine.experiments.dry_run import DryRun

UNITS = ("B", "kB", "MB", "GB", "TB")


def preflight(resolved: Resolved, folder: Path, json: bool) -> None:
    """Measure the run and print the result; train nothing.

    Raises:
        MachineError: the disk has no space for the checkpoints.
    """
    from bigmodel_cli.engine.experiments.dry_run import measure

    found = measure(resolved.recipe, folder)
    if json:
        origin = {".".join(path): where for path, where in resolved.origin.items()}
        console.print_json({"recipe": resolved.recipe.to_dict(), "origin": origin, **found.to_dict()})
    else:
        console.show(_recipe_table(resolved))
        _show(found)
    if found.disk_free < found.disk_needed:
        need, free = size(found.disk_needed), size(found.disk_free)
        raise MachineError(f"{folder}: the checkpoints need {need}", f"{free} free", "choose another --out")


def _recipe_table(resolved: Resolved) -> Any:
    rows = []
    for section, values in resolved.recipe.to_dict().items():
        for key, value in values.items():
            shown = "-" if value is None else str(value)
            rows.append((f"{section}.{key}", shown, resolved.origin.get((section, key), "default")))
    return console.table("recipe", ("field", "value", "origin"), rows)


def _show(found: DryRun) -> None:
    rows = [(x.name, x.kind, f"{x.parameters:,}", flops(x.flops)) for x in found.layers]
    rows.append(("total", "", f"{found.parameters:,}", flops(found.flops)))
    console.show(console.table("model", ("layer", "kind", "parameters", "FLOPs"), rows, right=True))
    metrics = ", ".join(f"{k} {format_metric(k, v)}" for k, v in found.val_metrics.items())
    facts = [
        ("placement", found.placement),
        ("training batch", f"loss {found.train_loss:.4f}, {found.step_seconds * 1000:.0f} ms per step"),
        ("validation batch", f"{metrics}; about {found.val_seconds:.1f} s for the split"),
        ("checkpoint", f"{size(found.checkpoint_bytes)} in {found.save_seconds:.2f} s"),
        ("disk", f"{size(found.disk_needed)} needed, {size(found.disk_free)} free"),
        ("memory", f"{size(found.memory_peak)} peak"),
        ("time", f"about {duration(found.estimated_seconds)} for {found.steps:,} steps"),
    ]
    console.show(console.table("the run", ("", "value"), facts))


def size(count: float) -> str:
    """A number of bytes with its unit, in powers of 1000."""
    unit = 0
    while count >= 1000 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {UNITS[unit]}"


def flops(count: float) -> str:
    return f"{count / 1e9:.3g} G" if count >= 1e9 else f"{count / 1e6:.3g} M"
