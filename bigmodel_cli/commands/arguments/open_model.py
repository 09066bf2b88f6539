"""Open what a command was given to run: a checkpoint or an export folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel_cli.commands.display import console

if TYPE_CHECKING:
    from bigmodel_cli.core.registry import Entry
    from bigmodel_cli.engine.build.load import TrainedModel


def open_trained(
    path: Path, trust: bool = False, *, pretrained: bool = False, data_dir: Path | None = None
) -> TrainedModel:
    """The checkpoint at `path`, or the export there, run by its format's runtime on the CPU in fp32.

    Args:
        trust: open an export that can hold code. A checkpoint never can.
        pretrained: `path` is the name of a model, whose published weights are in `data_dir`, or are downloaded.

    Raises:
        InputError: it is neither, or it is damaged, or its format can hold code and `trust` is not set.
        MachineError: the export needs a package that is not installed, or the weights cannot be downloaded.
    """
    if pretrained:
        return _open_published(str(path), data_dir)
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


def open_checkpoint(path: Path, pretrained: bool, data_dir: Path | None) -> TrainedModel:
    """The checkpoint at `path`; or with `pretrained`, the model of that name with its published weights."""
    from bigmodel_cli.engine.build.load import load_trained

    return _open_published(str(path), data_dir) if pretrained else load_trained(path)


def _open_published(name: str, data_dir: Path | None) -> TrainedModel:
    """The model `name` with its published weights; those of a classifier say what its classes are.

    Raises:
        InputError: there is no such model, or its weights are for no classes.
    """
    from bigmodel_cli.commands.arguments.recipe_layers import expand_hub_model
    from bigmodel_cli.commands.display.progress import WaitBars
    from bigmodel_cli.core.answering import Answers
    from bigmodel_cli.core.errors import InputError
    from bigmodel_cli.core.resolve import Layer, resolve
    from bigmodel_cli.engine.build.published_weights import load_pretrained

    folder = {} if data_dir is None else {"data": {"dir": str(data_dir)}}
    values = {"model": {"name": name}, "start": {"pretrained": True}, **folder}
    recipe = resolve(expand_hub_model([Layer("MODEL", values)], weights=True)).recipe
    with WaitBars():
        trained = load_pretrained(recipe)
    for line in trained.notes:
        console.note(line)
    if isinstance(trained.task, Answers) and not trained.task.spec.classes:
        hint = f"bigmodel finetune {name} --pretrained --data ..."
        raise InputError(f"{name}: its published weights have no classifier", "expected one to predict with", hint)
    return trained


def say_if_needless(trust: bool, path: Path, entry: Entry | None) -> None:
    """Say so if ``--trust`` was given for something that cannot hold code, nor files that are not checked."""
    if trust and (entry is None or (entry.meta.get("check") is not None and not entry.meta.get("unchecked"))):
        console.note(f"--trust has no effect: {path} holds no code")
