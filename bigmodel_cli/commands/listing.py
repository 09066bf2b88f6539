"""``bigmodel models`` and ``recipes``: what there is, a line each; ``bigmodel data`` is in data.py."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.commands.recipe_files import recipes_folder
from bigmodel_cli.core.registry import commands

Search = Annotated[str | None, typer.Option("--search", help="Only names that contain this.")]


@commands.register("models", order=160)
def models_command(search: Search = None, json: opt.Json = False) -> None:
    """The models: parameters, size, one line each (for 28x28 grey images of 10 classes, or text of 256 tokens).

    With --search those of timm and torchvision too, by name alone.

    Examples:

        bigmodel models

        bigmodel models --search vit
    """
    from bigmodel_cli.core.errors import nearest
    from bigmodel_cli.core.registry import models

    every = models.names() if search is None else models.matching(search.lower())
    if not every:
        console.note(f"no model's name contains {search!r}; {nearest(search or '', models.names())}")
        return
    own = [name for name in every if ":" not in name]
    rows = [_model_row(name) for name in own]
    for name in every[len(own) :]:
        family = name.partition(":")[0] + ":*"
        rows.append({"name": name, "parameters": None, "bytes": None, "summary": models.found[family].summary})
    if json:
        for row in rows:
            console.print_json(row)
        return
    cells = [(r["name"], _figure(r["parameters"]), _megabytes(r["bytes"]), r["summary"]) for r in rows]
    console.show(console.table(None, ("model", "parameters", "fp32", "what it is"), cells))
    if search is None:
        counts = ", ".join(f"{family}:... {len(models.members(family)):,}" for family in models.families())
        console.note(f"and {counts}: bigmodel models --search NAME")


def _model_row(name: str) -> dict[str, Any]:
    """A model's figures, from the model itself, built without memory."""
    from bigmodel_cli.core.registry import models, tasks
    from bigmodel_cli.core.types import SPECS
    from bigmodel_cli.models.layers.meta_init import init_on_meta

    entry = models.get(name)
    with init_on_meta():
        model = entry(SPECS[tasks.get(entry.meta["task"]).meta["kind"]].typical())
    parameters = sum(p.numel() for p in model.parameters())
    task, summary = entry.meta["task"], models.found[name].summary
    return {"name": name, "parameters": parameters, "bytes": 4 * parameters, "task": task, "summary": summary}


def _figure(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f} MB"


@commands.register("recipes", order=170)
def recipes_command(json: opt.Json = False) -> None:
    """The recipes that come with bigmodel: `bigmodel train recipes/...` runs one.

    Example:

        bigmodel recipes
    """
    folder = recipes_folder()
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.rglob("*.yaml")):
        head = []
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            head.append(line.lstrip("# "))
        rows.append({"recipe": f"recipes/{file.relative_to(folder)}", "summary": " ".join(head)})
    if json:
        for row in rows:
            console.print_json(row)
        return
    console.show(console.table(None, ("recipe", "what it does"), [(r["recipe"], r["summary"]) for r in rows]))
