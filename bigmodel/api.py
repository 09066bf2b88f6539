"""The functions of ``import bigmodel``. Each does what the command of its name does, and returns what that shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.arguments.remote_paths import taking_addresses

if TYPE_CHECKING:
    from bigmodel_cli.commands.arguments.recipe_layers import Known
    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.core.resolve import Layer
    from bigmodel_cli.core.tasks import Predicts
    from bigmodel_cli.engine.build.load import TrainedModel

AnyPath = str | PathLike[str]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        folder: the run folder, with ``best.pt``, ``last.pt``, ``metrics.jsonl`` and ``report.html``.
        checkpoint: the best checkpoint.
        metrics: the validation metrics of the best epoch, such as ``val_accuracy``.
        before: those of the starting weights; empty for training from scratch.
        seconds, steps: how long it took.
        recipe: every setting.
    """

    folder: Path
    checkpoint: Path
    metrics: dict[str, Any]
    before: dict[str, Any]
    seconds: float
    steps: int
    recipe: Recipe


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one sample: the name, and each answer with its value, the likeliest first."""

    sample: str
    answers: tuple[tuple[str, float], ...]

    @property
    def best(self) -> str:
        """The likeliest answer."""
        return self.answers[0][0]


class TrainedNetwork:
    """A checkpoint or an export, ready to predict; :func:`load` makes one."""

    def __init__(self, trained: TrainedModel) -> None:
        from bigmodel_cli.engine.device.placement import choose_placement
        from bigmodel_cli.engine.device.process import configure_process

        self._trained = trained
        configure_process(placement := choose_placement(trained.recipe.placement))
        self._placement, self._network = placement, placement.model(trained.model)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, labels or numbers that it predicts."""
        return tuple(self._trained.task.spec.classes)

    @property
    def module(self) -> Any:
        """The ``torch.nn.Module``."""
        return self._network

    @property
    def recipe(self) -> Recipe:
        """Every setting that it was trained with."""
        return self._trained.recipe

    def predict(
        self, samples: AnyPath | Sequence[AnyPath] = (), *, texts: Iterable[str] = (), top: int = 3
    ) -> list[Prediction]:
        """The `top` answers for each text, then for each image file, folder or file of texts, read as in training.

        Raises:
            InputError: a file cannot be read, or the model does not predict such samples.
        """
        from bigmodel_cli.commands.arguments.input_files import expand_inputs, reading
        from bigmodel_cli.commands.arguments.remote_paths import read_here
        from bigmodel_cli.commands.display import console
        from bigmodel_cli.commands.predict import predicting_task
        from bigmodel_cli.core.errors import InputError
        from bigmodel_cli.engine.inference.predict import predict_files

        texts = list(texts)
        given = [samples] if isinstance(samples, str | PathLike) else list(samples)
        task: Predicts = predicting_task(self._trained, bool(texts))
        how = reading(None, None, self._trained.recipe)
        files = expand_inputs([read_here(Path(path)) for path in given], task.spec.kind, how)
        found, notes = [], list[str]()
        for name, answer in predict_files(self._network, task, self._placement, files, top, texts, how, notes):
            if isinstance(answer, InputError):
                raise answer
            found.append(Prediction(name, tuple(answer)))
        for note in notes:
            console.note(note)
        return found


@taking_addresses("out")
def train(
    model: str | Recipe,
    data: AnyPath | None = None,
    *,
    out: AnyPath | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    **common: Any,
) -> Run:
    """Train a model from scratch, as ``bigmodel train`` does.

    Args:
        model: the name of a model, the path of a recipe file, or a :class:`Recipe`.
        data: the name of a data set, or the path of your own files; None: the recipe's, else a built-in one.
        out: the run folder; None: ``runs/<model>-<data>-<n>``.
        resume, overwrite: continue or replace the run in `out`.
        progress: show the epochs as they end, in a terminal or a notebook.
        settings: any recipe fields, as ``{"train.ema_decay": 0.99}``.
        common: ``epochs``, ``batch_size``, ``lr``, ``max_steps``, ``seed``, ``optimizer``, ``schedule``, ``loss``,
            ``device``, ``precision``, ``size``, ``task``: the flags of these names.

    Raises:
        InputError: a setting, the data or the folder is not right.
        MachineError: the machine cannot do it.
        DivergedError: the loss is not finite.
    """
    from bigmodel_cli.commands.arguments.recipe_layers import (
        Known,
        expand_hub_model,
        named_layers,
        task_in,
        with_image_size,
    )
    from bigmodel_cli.core.resolve import Layer

    named = named_layers(model, None) if isinstance(model, str) else [Layer("recipe", model.to_dict())]
    given = _layers(data, common, settings, Known(task_in(named)))
    layers = with_image_size(expand_hub_model([*named, *given], weights=False))
    return _run(layers, out, resume, overwrite, progress)


@taking_addresses("start", "out")
def finetune(
    start: AnyPath,
    data: AnyPath | None = None,
    *,
    method: str | None = None,
    pretrained: bool = False,
    out: AnyPath | None = None,
    overwrite: bool = False,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    **common: Any,
) -> Run:
    """Fine-tune a checkpoint or, with `pretrained`, the published weights of the model named `start`.

    `method` is one of ``bigmodel methods``; its options are settings such as ``{"start.rank": 4}``. The rest is as in
    :func:`train`.
    """
    from bigmodel_cli.commands.arguments.recipe_layers import Known, expand_hub_model, named_layers
    from bigmodel_cli.commands.finetune import default_method, known_of
    from bigmodel_cli.commands.training.finetune_layers import start_layers

    named = named_layers(str(start), None) if pretrained else []
    checkpoint = None if pretrained else Path(start)
    known = Known() if checkpoint is None or data is None else known_of(checkpoint)
    layers = expand_hub_model([*named, *_layers(data, common, settings, known)], pretrained)
    section = {"method": method or default_method(layers, checkpoint)}
    return _run(start_layers(checkpoint, pretrained, section, layers).layers, out, False, overwrite, progress)


@taking_addresses("checkpoint")
def evaluate(
    checkpoint: AnyPath,
    *,
    split: str | None = None,
    data: AnyPath | None = None,
    batch_size: int | None = None,
    metrics: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metrics of a checkpoint or an export on a split: what ``bigmodel eval --json`` prints, and ``metrics``."""
    from bigmodel_cli.commands.arguments.open_model import open_trained
    from bigmodel_cli.commands.arguments.recipe_layers import Known, checkpoint_recipe
    from bigmodel_cli.commands.evaluate import evaluate_split
    from bigmodel_cli.commands.evaluation.measuring import open_split
    from bigmodel_cli.commands.evaluation.trust import TrustOptions

    trained = open_trained(Path(checkpoint))
    known = Known.of(trained.recipe.to_dict()["data"])
    recipe = checkpoint_recipe(trained, _layers(data, {}, settings, known))
    measured = open_split(trained, recipe, split)
    size = batch_size or recipe.train.eval_batch_size
    found = evaluate_split(measured, TrustOptions(), size, False, 10, metrics, None)
    values = {"metrics": found.report.values.get("headline", {}), **found.report.values}
    return {"checkpoint": str(trained.path), "split": measured.name, "notes": found.notes, **values}


@taking_addresses("path")
def load(path: AnyPath, *, pretrained: bool = False, trust: bool = False) -> TrainedNetwork:
    """The checkpoint, run folder or export at `path`, or with `pretrained` the model of that name, to predict with.

    `trust` opens an export whose format can hold code.
    """
    from bigmodel_cli.commands.arguments.open_model import open_trained

    return TrainedNetwork(open_trained(Path(path), trust, pretrained=pretrained))


@taking_addresses("checkpoint", "out")
def export(
    checkpoint: AnyPath, out: AnyPath, *, format: str = "onnx", overwrite: bool = False, samples: int = 256
) -> dict[str, Any]:
    """Export a checkpoint to the folder `out`, and verify that it gives the same outputs; returns the comparison.

    Raises:
        BigmodelError: the outputs differ, and nothing was written.
    """
    from bigmodel_cli.commands.arguments.open_model import open_checkpoint
    from bigmodel_cli.commands.arguments.options import RunOptions
    from bigmodel_cli.commands.export import find_format, subject
    from bigmodel_cli.core.errors import BigmodelError
    from bigmodel_cli.export.proof import prove

    entry = find_format(format)
    trained = open_checkpoint(Path(checkpoint), False, None)
    source = subject(trained, samples, RunOptions(), None)
    proof = prove(source, entry.name, Path(out), overwrite=overwrite, seconds=0.0)
    if not proof.passed:
        raise BigmodelError(
            "the export's outputs differ from the checkpoint's: nothing was written", "; ".join(proof.failed)
        )
    return proof.to_dict()


FLAGS = {
    "epochs": "train.epochs", "batch_size": "train.batch_size", "max_steps": "train.max_steps", "seed": "train.seed",
    "lr": "optimizer.lr", "optimizer": "optimizer.name", "schedule": "schedule.name", "loss": "loss.name",
    "augment": "augment.name", "device": "placement.device", "precision": "placement.precision",
    "size": "model.image_size", "task": "data.task", "columns": "data.columns",
}  # fmt: skip
"""Keyword -> the recipe field that it sets."""


def _layers(
    data: AnyPath | None, common: Mapping[str, Any], settings: Mapping[str, Any] | None, known: Known
) -> list[Layer]:
    """The arguments as layers of a recipe, names before options; `known` is for want of an argument."""
    from bigmodel_cli.commands.arguments.recipe_layers import resolve_data_path
    from bigmodel_cli.core.errors import InputError, nearest
    from bigmodel_cli.core.resolve import Layer

    layers = []
    if data is not None:
        known = replace(known, task=common.get("task") or known.task)
        found = resolve_data_path(str(data), common.get("columns"), known)
        layers.append(Layer("data", {"data": found or {"name": str(data)}}))
    for name in sorted(common, key=lambda name: not FLAGS.get(name, "").endswith(".name")):
        if name not in FLAGS:
            raise InputError(f"no such argument {name!r}", nearest(name, FLAGS), "settings={'section.key': value}")
        section, _, key = FLAGS[name].partition(".")
        if common[name] is not None:
            layers.append(Layer(name, {section: {key: common[name]}}))
    for path, value in (settings or {}).items():
        section, _, key = path.partition(".")
        if not key:
            raise InputError(f"settings: {path!r}", "expected section.key", "bigmodel recipe fields")
        layers.append(Layer("settings", {section: {key: value}}))
    return layers


def _run(layers: list[Layer], out: AnyPath | None, resume: bool, overwrite: bool, progress: bool) -> Run:
    from bigmodel_cli.commands.display.progress import Silence, for_output
    from bigmodel_cli.commands.train import run_stem
    from bigmodel_cli.commands.training.run import train_recipe
    from bigmodel_cli.core.resolve import resolve
    from bigmodel_cli.engine.session.run_folder import RunFolder

    recipe = resolve(layers).recipe
    folder = RunFolder(None if out is None else Path(out), run_stem(recipe), resume=resume, overwrite=overwrite)
    outcome = train_recipe(recipe, folder, for_output(False) if progress else Silence())
    steps = outcome.run.progress.step
    return Run(outcome.folder, outcome.best, outcome.metrics, outcome.before, outcome.seconds, steps, recipe)
