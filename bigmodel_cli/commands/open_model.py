"""Open what a command was given to run: a checkpoint or an export folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel_cli.commands import console

if TYPE_CHECKING:
    from bigmodel_cli.core.registry import Entry
    from bigmodel_cli.engine.build.load import TrainedModel


def open_trained(path: Path, trust: bool = False) -> TrainedModel:
    """The checkpoint at `path`, or the export there, run by its format's runtime on the CPU in fp32.

    Args:
        trust: open an export that can hold code. A checkpoint never can.

    Raises:
        InputError: it is neither, or it is damaged, or its format can hold code and `trust` is not set.
        MachineError: the export needs a package that is not installed.
    """
    from bigmodel_cli.engine.build.load import load_trained
    from bigmodel_cli.engine.build.model import build_task
    from bigmodel_cli.export.folder import is_export, read_folder

    if not is_export(path):
        say_if_needless(trust, path, None)
        return load_trained(path)
    from bigmodel_cli.core.recipe import complete
    from bigmodel_cli.core.resolve import Layer, resolve
    from bigmodel_cli.engine.build.load import TrainedModel
    from bigmodel_cli.export.exported_model import exported_model

    folder = read_folder(path)
    say_if_needless(trust, path, folder.entry)
    fixed = Layer("export", {"placement": {"device": "cpu", "precision": "fp32"}})
    recipe = resolve([Layer(str(path / "export.json"), complete(folder.about["recipe"])), fixed]).recipe
    model, task = exported_model(folder, build_task(recipe, folder.spec), trust)
    return TrainedModel(path, model.eval(), task, recipe, {**folder.about, "recipe": recipe.to_dict()}, {})


def say_if_needless(trust: bool, path: Path, entry: Entry | None) -> None:
    """Say so if ``--trust`` was given for something that cannot hold code."""
    if trust and (entry is None or entry.meta.get("check") is not None):
        console.note(f"--trust has no effect: {path} holds no code")
