"""``bigmodel recipe``: the schema of recipes, and a recipe with every default filled in."""

from __future__ import annotations

from typing import Annotated

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.option_tables import option_rows, show_options
from bigmodel_cli.core.errors import InputError, nearest
from bigmodel_cli.core.registry import commands

app = typer.Typer(no_args_is_help=True)


@app.callback()
@commands.register("recipe", order=190, app=app)
def recipe_command() -> None:
    """What a recipe may say."""


@app.command()
def schema() -> None:
    """Print the JSON schema of recipe files, for completion and validation in editors.

    Example:

        bigmodel recipe schema > recipe.schema.json
    """
    from bigmodel_cli.core import recipe

    console.print_json(recipe.schema())


@app.command()
def fields(
    section: Annotated[str | None, typer.Argument(metavar="SECTION", help="Only this one, such as train.")] = None,
    json: opt.Json = False,
) -> None:
    """List what `--set section.key=value` may set, with defaults.

    A section that names a component, such as optimizer, also has that component's options:
    `bigmodel optimizers adamw` lists those.

    Example:

        bigmodel recipe fields train
    """
    from bigmodel_cli.core.recipe import COMPONENTS, Recipe

    known = Recipe.model_fields
    if section is not None and section not in known:
        raise InputError(f"no section {section!r}", nearest(section, known))
    for name in known if section is None else [section]:
        rows = option_rows(known[name].annotation.model_json_schema())  # type: ignore[union-attr]
        if json:
            console.print_json({"section": name, "fields": rows})
            continue
        show_options(rows, name)
        if name in COMPONENTS:
            console.say(f"and the options of the {COMPONENTS[name].kind}: bigmodel {COMPONENTS[name].listing} NAME")


@app.command()
def show(file: Annotated[str, typer.Argument(metavar="FILE", help="Recipe file, or a model name.")]) -> None:
    """Validate a recipe and print it with every default filled in.

    Example:

        bigmodel recipe show recipes/image/mnist-cnn.yaml
    """
    from bigmodel_cli.commands.arguments.recipe_layers import named_layers
    from bigmodel_cli.core.resolve import resolve
    from bigmodel_cli.core.strict_yaml import dump_yaml

    console.raw(dump_yaml(resolve(named_layers(file, None)).recipe.to_dict()))
