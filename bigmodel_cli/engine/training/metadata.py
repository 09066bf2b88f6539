"""What a checkpoint says of the run that made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.types import DataBundle, Task
from bigmodel_cli.engine.training.provenance import provenance


def build_meta(recipe: Recipe, task: Task, bundle: DataBundle, new: Sequence[str]) -> dict[str, Any]:
    """Plain values: the model, its inputs, the data, the recipe, and where it was made."""
    values = recipe.to_dict()
    spec = task.spec
    return {
        "arch": recipe.model.name,
        "arch_args": recipe.model.options,
        "task": task.name,
        "classes": list(spec.classes),
        "input": {"kind": spec.kind, **spec.to_dict()},
        "data": {**values["data"], "fingerprint": bundle.fingerprint, "spec": bundle.spec.to_dict()},
        "recipe": values,
        "origin": provenance(),
        **({"new": list(new)} if new else {}),
    }
