"""The options that commands share, and how they become recipe layers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.core.resolve import Layer
    from bigmodel_cli.engine.build.load import TrainedModel
from bigmodel_cli.commands.recipe_files import find_recipe


def _complete(registry: str) -> Any:
    """Shell completion from the names in a registry: reads source, imports no torch."""

    def names(incomplete: str) -> list[str]:
        from bigmodel_cli.core import registry as registries

        return getattr(registries, registry).matching(incomplete, start=True)  # type: ignore[no-any-return]

    return names


Model = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="A model's name, or a recipe file.", autocompletion=_complete("models")),
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", metavar="FILE", help="Recipe file to start from.")]
Data = Annotated[
    str | None,
    typer.Option("--data", help="Data set, or a path to your own images or text.", autocompletion=_complete("data")),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of data files.  [default: $BIGMODEL_DATA or ~/.cache/bigmodel]"),
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the train split.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Samples an optimizer step, or at a time in eval.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
Optimizer = Annotated[
    str | None, typer.Option("--optimizer", help="gd, sgd, adam, adamw, ...", autocompletion=_complete("optimizers"))
]
Schedule = Annotated[
    str | None,
    typer.Option("--schedule", help="constant, step, cosine, one_cycle.", autocompletion=_complete("schedules")),
]
Loss = Annotated[str | None, typer.Option("--loss", help="cross_entropy, mse.", autocompletion=_complete("losses"))]
Method = Annotated[
    str | None,
    typer.Option("--method", help="full, freeze-backbone, lora, probe, ...", autocompletion=_complete("methods")),
]
Balance = Annotated[
    str | None, typer.Option("--balance", help="Uneven classes: none, loss (weighed) or sampling (drawn evenly).")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of weights, order and augmentation.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps.")]
Precision = Annotated[str | None, typer.Option("--precision", help="auto, fp32, bf16.")]
Tta = Annotated[bool, typer.Option("--tta", help="Average the answers to each image and its mirror image.")]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", help="Stop after this many optimizer steps.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder.  [default: runs/<model>-<data>-<n>]")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out where it stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any other recipe field.")]
Compile = Annotated[bool | None, typer.Option("--compile", help="torch.compile; default measured.")]
ChannelsLast = Annotated[bool | None, typer.Option("--channels-last", help="Memory format; default measured.")]
Profile = Annotated[bool | None, typer.Option("--profile", help="Write trace.json, a Chrome trace of some steps.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and measure everything, train nothing.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
Checkpoint = Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint file, or a run folder (its best.pt).")]

Nproc = Annotated[
    str | None, typer.Option("--nproc", metavar="auto|N", help="Processes on this host; auto: one a GPU, else a core.")
]
Nnodes = Annotated[
    str | None, typer.Option("--nnodes", metavar="N|A:B", help="Hosts: N, or from A up to B as they come and go.")
]
Rdzv = Annotated[str | None, typer.Option("--rdzv", metavar="HOST:PORT", help="Where the hosts meet: one of them.")]
MaxRestarts = Annotated[int, typer.Option("--max-restarts", min=0, help="Starts again from the last checkpoint.")]
Timeout = Annotated[
    float | None, typer.Option("--timeout", help="Seconds after which a process without an answer is lost.")
]

FLAGS = {
    "data": ("data", "name"),
    "optimizer": ("optimizer", "name"),
    "schedule": ("schedule", "name"),
    "loss": ("loss", "name"),
    "data_dir": ("data", "dir"),
    "epochs": ("train", "epochs"),
    "batch_size": ("train", "batch_size"),
    "max_steps": ("train", "max_steps"),
    "lr": ("optimizer", "lr"),
    "balance": ("train", "balance"),
    "seed": ("train", "seed"),
    "profile": ("train", "profile"),
    "timeout": ("parallel", "timeout"),
    "device": ("placement", "device"),
    "precision": ("placement", "precision"),
    "compile": ("placement", "compile"),
    "channels_last": ("placement", "channels_last"),
}
"""Flag -> recipe field. Names come first: another component drops the old one's options."""


def flag_layers(flags: dict[str, Any], assignments: list[str] | None) -> list[Layer]:
    """One layer a flag that was given, then the ``--set`` values."""
    from bigmodel_cli.core.resolve import Layer, set_layer

    layers = []
    for flag, (section, key) in FLAGS.items():
        value = flags.get(flag)
        if value is not None:
            plain = str(value) if isinstance(value, Path) else value
            values = own_data(plain) if flag == "data" else None
            layers.append(Layer("--" + flag.replace("_", "-"), {section: values or {key: plain}}))
    return [*layers, set_layer(assignments or [])]


def own_data(value: str) -> dict[str, str] | None:
    """The data section for ``--data PATH``: a value with a separator, or what is there and is no data set's name."""
    from bigmodel_cli.core.registry import data

    if value.startswith(("http://", "https://")):
        return {"name": "shard_stream", "path": value}
    if value.startswith("hf:"):
        return {"name": "image_folder", "path": value}
    path = Path(value).expanduser()
    if value.endswith(".tar") and any(sign in value for sign in "{*"):  # shards by a pattern
        return {"name": "image_folder", "path": str(path.absolute())}
    if "/" not in value and os.sep not in value and (value in data.found or not path.exists()):
        return None
    from bigmodel_cli.data.user_data.text_files import source_for

    # Absolute, so that the checkpoint finds its data again from any folder.
    return {"name": source_for(path) or "image_folder", "path": str(path.absolute())}


def recipe_of(trained: TrainedModel, flags: dict[str, Any], assignments: list[str] | None) -> Recipe:
    """The recipe that a checkpoint remembers, under the flags that were given."""
    from bigmodel_cli.core.resolve import Layer, resolve

    saved = Layer(str(trained.path), trained.meta["recipe"])
    layers = flag_layers(flags, assignments)
    spec = trained.task.spec
    if getattr(spec, "square", 0) is None:  # a model of whole images: another folder's come in its size, uncropped
        for layer in layers:
            if layer.values.get("data", {}).get("name") == "image_folder":
                layer.values["data"].update(size=spec.height, crop=1.0, channels=spec.channels)
    return resolve([saved, *layers]).recipe


def base_layers(model: str | None, recipe: Path | None) -> list[Layer]:
    """The recipe file and the model's name, either of which MODEL may be."""
    from bigmodel_cli.core.resolve import Layer, document_layer
    from bigmodel_cli.core.strict_yaml import read_yaml

    layers = []
    if model is not None and not model.startswith("hf:") and ("/" in model or model.endswith((".yaml", ".yml"))):
        layers.append(document_layer(read_yaml(find_recipe(Path(model))), model))
        model = None
    if recipe is not None:
        layers.append(document_layer(read_yaml(find_recipe(recipe)), str(recipe)))
    if model is not None:
        layers.append(Layer("MODEL", {"model": {"name": model}}))
    return layers


def hub_layers(layers: list[Layer], weights: bool) -> list[Layer]:
    """`layers`, where the model is ``hf:FOLDER`` or ``hf:NAME`` with what its files say, and its tokenizer."""
    from bigmodel_cli.core.resolve import Layer

    names = [str(layer.values.get("model", {}).get("name", "")) for layer in layers]
    if not any(name.startswith("hf:") for name in names):
        return layers
    from bigmodel_cli.engine.build.huggingface_hub import huggingface_model, is_huggingface_source

    found = [i for i, name in enumerate(names) if is_huggingface_source(name)]
    if not found:
        return layers
    old = layers[found[-1]]
    section, folder = huggingface_model(old.values["model"]["name"], weights)
    values = {**old.values, "model": {**old.values["model"], **section}}
    named = [*layers[: found[-1]], Layer(old.source, values, old.lines), *layers[found[-1] + 1 :]]
    return [*named, tokenizer_layer(folder / "tokenizer.json", named, start=weights)]


def tokenizer_layer(file: Path, layers: list[Layer], start: bool = False) -> Layer:
    """The tokenizer that lies beside weights, for data that takes a tokenizer and was given none.

    Data that takes the start's by itself is left to, where there is a `start`.
    """
    from typing import Literal, get_origin

    from bigmodel_cli.core.registry import data
    from bigmodel_cli.core.resolve import Layer, resolve

    resolved = resolve(layers)
    field = data.get(resolved.recipe.data.name).schema.model_fields.get("tokenizer")
    takes = field is not None and get_origin(field.annotation) is not Literal
    itself = start and field is not None and field.default == "auto"
    wanted = file.is_file() and takes and not itself and ("data", "tokenizer") not in resolved.origin
    return Layer(str(file), {"data": {"tokenizer": str(file.absolute())}} if wanted else {})
