"""``bigmodel models`` and ``bigmodel recipes``: one line each; ``bigmodel data`` is in data.py."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.arguments.recipe_files import recipes_folder
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.option_tables import show_component
from bigmodel_cli.core.registry import commands

Name = Annotated[str | None, typer.Argument(metavar="NAME", help="Show the options of this one, with defaults.")]
Search = Annotated[str | None, typer.Option("--search", metavar="TEXT", help="List only names that contain TEXT.")]


@commands.register("models", order=160)
def models_command(name: Name = None, search: Search = None, json: opt.Json = False) -> None:
    """List the models with their parameter counts and sizes, or the options of one.

    Counted for 28x28 gray images of 10 classes, or for a vocabulary of 256 tokens. --search
    also lists the models of timm and torchvision, by name only.

    Examples:

        bigmodel models

        bigmodel models --search vit

        bigmodel models resnet18
    """
    from bigmodel_cli.core.errors import nearest
    from bigmodel_cli.core.registry import models

    if name is not None:
        show_component(models, name, "model", json)
        return
    every = models.names() if search is None else models.matching(search.lower())
    if not every:
        console.note(f"no model name contains {search!r}; {nearest(search or '', models.names())}")
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
    cells = [(r["name"], _count(r["parameters"]), _megabytes(r["bytes"]), r["summary"]) for r in rows]
    console.show(console.table(None, ("model", "parameters", "fp32 size", "description"), cells))
    if search is None:
        counts = ", ".join(f"{family}:... {len(models.members(family)):,}" for family in models.families())
        console.note(f"and {counts}; find them with: bigmodel models --search NAME")


def _model_row(name: str) -> dict[str, Any]:
    """A model's size, from the model itself, built on the meta device."""
    from bigmodel_cli.core.registry import models, tasks
    from bigmodel_cli.models.layers.meta_init import init_on_meta

    entry = models.get(name)
    with init_on_meta():
        model = entry(tasks.get(entry.meta["task"]).meta["spec_type"].typical())
    parameters = sum(p.numel() for p in model.parameters())
    task, summary = entry.meta["task"], models.found[name].summary
    return {"name": name, "parameters": parameters, "bytes": 4 * parameters, "task": task, "summary": summary}


def _count(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f} MB"


@commands.register("recipes", order=170)
def recipes_command(json: opt.Json = False) -> None:
    """List the bundled recipes; run one with `bigmodel train recipes/...`.

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
    console.show(console.table(None, ("recipe", "description"), [(r["recipe"], r["summary"]) for r in rows]))
