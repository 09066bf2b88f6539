"""``bigmodel recipe``: what a recipe may say."""

from __future__ import annotations

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.core.registry import commands

app = typer.Typer(no_args_is_help=True)


@app.callback()
@commands.register("recipe", order=190, app=app)
def recipe_command() -> None:
    """What a recipe may say."""


@app.command()
def schema() -> None:
    """Print the JSON schema of recipe files, from which editors complete them.

    Example:

        bigmodel recipe schema > recipe.schema.json
    """
    from bigmodel_cli.core import recipe

    console.print_json(recipe.schema())


@app.command()
def show(file: str) -> None:
    """Print a recipe resolved: every default filled in, everything checked.

    Example:

        bigmodel recipe show recipes/image/mnist-cnn.yaml
    """
    from bigmodel_cli.commands.options import base_layers
    from bigmodel_cli.core.resolve import resolve
    from bigmodel_cli.core.strict_yaml import dump_yaml

    console.raw(dump_yaml(resolve(base_layers(file, None)).recipe.to_dict()))
