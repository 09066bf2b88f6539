"""Open what a command was given to run: a checkpoint or an export folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigmodel_cli.engine.build.load import TrainedModel


def open_trained(path: Path) -> TrainedModel:
    """The checkpoint at `path`, or the export there, run by its format's runtime on the CPU in fp32.

    Raises:
        InputError: it is neither, or it is damaged.
        MachineError: the export needs a package that is not installed.
    """
    from bigmodel_cli.engine.build.load import load_trained
    from bigmodel_cli.engine.build.model import build_task
    from bigmodel_cli.export.folder import is_export, read_folder

    if not is_export(path):
        return load_trained(path)
    from bigmodel_cli.core.resolve import Layer, resolve
    from bigmodel_cli.engine.build.load import TrainedModel
    from bigmodel_cli.export.exported_model import exported_model

    folder = read_folder(path)
    fixed = Layer("export", {"placement": {"device": "cpu", "precision": "fp32"}})
    recipe = resolve([Layer(str(path / "export.json"), folder.about["recipe"]), fixed]).recipe
    model, task = exported_model(folder, build_task(recipe, folder.spec))
    return TrainedModel(path, model.eval(), task, recipe, {**folder.about, "recipe": recipe.to_dict()}, {})
