"""Shared flags: declared once, the same in every command, and documented with the defaults that hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from bigmodel_cli import cli
from bigmodel_cli.commands.arguments.options import RunOptions
from bigmodel_cli.commands.arguments.signatures import Flag, flags_of, takes_options
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.resolve import resolve

GROUP: Any = typer.main.get_command(cli.app)
COMMANDS = {name: GROUP.get_command(None, name) for name in GROUP.list_commands(None)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a command line of its own would share."""

    rate: Annotated[float | None, typer.Option("--rate", help="How fast."), Flag("optimizer.lr", default="slow")] = None
    width: Annotated[int, typer.Option("--width"), Flag(also=("eval",))] = 3


def test_one_declaration_is_a_flag_of_every_command_that_takes_it() -> None:
    app, seen = typer.Typer(rich_markup_mode=None), []

    @app.command()
    @takes_options("train")
    def train(*, name: str, options: Options, last: bool = False) -> None:
        """Train."""
        seen.append((name, options, last))

    @app.command("eval")
    @takes_options("eval", width="as wide as it was")
    def evaluate(options: Options) -> None:
        """Evaluate."""
        seen.append(options)

    run = CliRunner().invoke
    assert run(app, ["train", "x", "--rate", "0.5", "--last"]).exit_code == 0
    assert run(app, ["eval", "--width", "7"]).exit_code == 0
    assert seen == [("x", Options(rate=0.5), True), Options(width=7)]
    assert run(app, ["eval", "--rate", "1"]).exit_code == 2
    shown = run(app, ["train", "--help"]).output
    assert "How fast.  [default: slow]" in shown and shown.index("--rate") < shown.index("--last")
    assert "as wide as it was" in run(app, ["eval", "--help"]).output


def flags_in_help(command: str) -> set[str]:
    return {flag for parameter in COMMANDS[command].params for flag in parameter.opts}


def test_a_flag_is_in_every_command_that_its_declaration_names() -> None:
    for name, flag in flags_of(RunOptions):
        shown = "model" if name == "model" else "--" + {"assignments": "set"}.get(name, name).replace("_", "-")
        for command in ("train", "finetune", *flag.also):
            assert shown in flags_in_help(command), f"{command} {shown}"


@pytest.mark.parametrize("name", [name for name, flag in flags_of(RunOptions) if flag.sets])
def test_the_default_in_the_help_is_the_recipe_s(name: str) -> None:
    flag = dict(flags_of(RunOptions))[name]
    section, key = flag.path
    whole: Any = Recipe.model_fields[section]
    field = whole.annotation.model_fields.get(key) if whole.is_required() else None
    value = whole.get_default().model_dump().get(key) if field is None and not whole.is_required() else None
    value = value if field is None else field.default
    if value not in (None, False):
        assert flag.default is not None and re.match(re.escape(str(value)), flag.default), (value, flag.default)


def test_flags_set_the_fields_they_name() -> None:
    options = RunOptions(model="mlp", lr=0.25, optimizer="sgd", epochs=3, assignments=["train.epochs=4"])
    found = resolve(options.recipe_layers())
    assert found.recipe.optimizer.name == "sgd" and found.recipe.optimizer.options["lr"] == 0.25
    assert found.recipe.train.epochs == 4 and found.origin["train", "epochs"] == "--set"
    assert found.origin["optimizer", "lr"] == "--lr"
    with pytest.raises(InputError, match=r"--lr: optimizer\.lr"):
        resolve(RunOptions(model="mlp", lr=-1.0).recipe_layers())


def pages(group: Any, prefix: str = "") -> dict[str, str]:
    """The help of every command, by its name."""
    found = {}
    for name, command in group.items():
        found[f"{prefix}{name}"] = command.help or ""
        found |= pages(getattr(command, "commands", {}), f"{name} ")
    return found


@pytest.mark.parametrize("name", sorted(pages(COMMANDS)))
def test_help_begins_with_a_sentence_and_its_examples_fit_80_columns(name: str) -> None:
    page = pages(COMMANDS)[name]
    assert re.match(r"[A-Z][^\n]*\.", page), page
    for line in page.splitlines():
        if line.startswith("    bigmodel "):
            assert len(line) + 2 <= 78, line
