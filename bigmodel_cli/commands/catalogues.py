"""``bigmodel optimizers``, ``methods``, ``formats`` and their like: what there is; with a NAME, its options."""

from __future__ import annotations

from typing import Annotated

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.display.option_tables import show_component, show_names
from bigmodel_cli.core import registry as registries
from bigmodel_cli.core.registry import Registry, commands

Name = Annotated[str | None, typer.Argument(metavar="NAME", help="Show the options of this one, with defaults.")]


def _catalogue(registry: Registry, name: str | None, section: str | None, json: bool) -> None:
    if name is None:
        show_names(registry, json)
    else:
        show_component(registry, name, section, json)


@commands.register("optimizers", order=161)
def optimizers_command(name: Name = None, json: opt.Json = False) -> None:
    """List the optimizers, or the options of one.

    Example:

        bigmodel optimizers adamw
    """
    _catalogue(registries.optimizers, name, "optimizer", json)


@commands.register("schedules", order=162)
def schedules_command(name: Name = None, json: opt.Json = False) -> None:
    """List the learning-rate schedules, or the options of one.

    Example:

        bigmodel schedules one_cycle
    """
    _catalogue(registries.schedules, name, "schedule", json)


@commands.register("losses", order=163)
def losses_command(name: Name = None, json: opt.Json = False) -> None:
    """List the losses, or the options of one.

    Example:

        bigmodel losses cross_entropy
    """
    _catalogue(registries.losses, name, "loss", json)


@commands.register("augmentations", order=164)
def augmentations_command(name: Name = None, json: opt.Json = False) -> None:
    """List the augmentations, or the options of one.

    Example:

        bigmodel augmentations shift
    """
    _catalogue(registries.augments, name, "augment", json)


@commands.register("methods", order=165)
def methods_command(name: Name = None, json: opt.Json = False) -> None:
    """List the fine-tuning methods, or the options of one.

    Example:

        bigmodel methods lora
    """
    _catalogue(registries.methods, name, "start", json)


@commands.register("compressions", order=166)
def compressions_command(name: Name = None, json: opt.Json = False) -> None:
    """List the compression methods, or the options of one.

    Example:

        bigmodel compressions prune
    """
    _catalogue(registries.compressions, name, "compress", json)


@commands.register("formats", order=167)
def formats_command(name: Name = None, json: opt.Json = False) -> None:
    """List the export formats, or the options of one.

    Example:

        bigmodel formats onnx
    """
    _catalogue(registries.exports, name, "export", json)


@commands.register("metrics", order=168)
def metrics_command(name: Name = None, json: opt.Json = False) -> None:
    """List the metrics, or the options of one.

    Example:

        bigmodel metrics top5_accuracy
    """
    _catalogue(registries.metrics, name, None, json)


@commands.register("tasks", order=169)
def tasks_command(name: Name = None, json: opt.Json = False) -> None:
    """List the tasks: what models are trained for.

    Example:

        bigmodel tasks
    """
    _catalogue(registries.tasks, name, None, json)


@commands.register("loggers", order=169)
def loggers_command(name: Name = None, json: opt.Json = False) -> None:
    """List the loggers that `--log NAME` takes.

    Example:

        bigmodel loggers
    """
    _catalogue(registries.loggers, name, None, json)
