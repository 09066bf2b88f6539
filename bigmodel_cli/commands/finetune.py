"""``bigmodel finetune``: where to start from, and what to train of it; the rest is as in ``train``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.commands.launch import Launch
from bigmodel_cli.commands.train import go
from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.core.resolve import Layer


def finetune(
    model: opt.Model = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--from", metavar="CKPT", help="Checkpoint, or anyone's .pt or .safetensors weights.")
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from MODEL's published weights.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing.")] = False,
    method: opt.Method = None,
    freeze_backbone: Annotated[bool, typer.Option("--freeze-backbone", help="Train the head alone.")] = False,
    freeze_until: Annotated[
        str | None, typer.Option("--freeze-until", metavar="LAYER", help="Train LAYER and what follows it.")
    ] = None,
    lora: Annotated[int | None, typer.Option("--lora", metavar="R", help="Train adapters of rank R.")] = None,
    data: opt.Data = None,
    recipe: opt.RecipeFile = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    optimizer: opt.Optimizer = None,
    schedule: opt.Schedule = None,
    loss: opt.Loss = None,
    balance: opt.Balance = None,
    seed: opt.Seed = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    compile: opt.Compile = None,
    channels_last: opt.ChannelsLast = None,
    max_steps: opt.MaxSteps = None,
    data_dir: opt.DataDir = None,
    assignments: opt.Set = None,
    out: opt.Out = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    profile: opt.Profile = None,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
    nproc: opt.Nproc = None,
    nnodes: opt.Nnodes = None,
    rdzv: opt.Rdzv = None,
    max_restarts: opt.MaxRestarts = 0,
    timeout: opt.Timeout = None,
) -> None:
    """Go on from a checkpoint, on its own data or on other data; or from MODEL's published weights.

    Examples:

        bigmodel finetune --from runs/resnet18-digits-1/best.pt --freeze-backbone

        bigmodel finetune --from ckpt.pt --data mnist --epochs 2 --lr 3e-4

        bigmodel finetune --from ckpt.pt --freeze-until layer4

        bigmodel finetune --from ckpt.pt --method auto

        bigmodel finetune --from ckpt.pt --data chat.jsonl

        bigmodel finetune --from ckpt.pt --data pairs-of-answers.jsonl --lora 8

        bigmodel finetune resnet18 --from resnet18.safetensors --data mnist

        bigmodel finetune timm:resnet18 --pretrained --data cifar10 --lora 8
    """
    flags = {k: v for k, v in locals().items() if k in opt.FLAGS}
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # as the hub's own tools say it
    layers = opt.hub_layers([*opt.base_layers(model, recipe), *opt.flag_layers(flags, assignments)], pretrained)
    if checkpoint is not None:
        _check_pin(checkpoint, layers)
    named = {"--method": method, "--freeze-backbone": freeze_backbone or None, "--freeze-until": freeze_until}
    start = _method({**named, "--lora": lora}, lambda: _usual(layers, checkpoint))
    launch = Launch(nproc, nnodes, rdzv, max_restarts)
    if method == "auto":
        if launch.wanted:
            raise InputError("--method auto tries in one process", hint="without --nproc; then --method NAME --nproc N")
        start = _chosen(checkpoint, pretrained, layers)
    go(_start_layers(checkpoint, pretrained, start, layers), out, resume, overwrite, dry_run, json, launch)


def _usual(layers: list[Layer], checkpoint: Path | None) -> str:
    """The method that the data is for, as pairs of answers are for dpo; else full."""
    from bigmodel_cli.core.registry import data
    from bigmodel_cli.engine.build.foreign_weights import is_foreign
    from bigmodel_cli.engine.build.load import load_meta
    from bigmodel_cli.engine.build.locate import checkpoint_file

    named = [layer.values["data"]["name"] for layer in layers if "name" in layer.values.get("data", {})]
    if not named and checkpoint is not None and not is_foreign(path := checkpoint_file(checkpoint)):
        named = [load_meta(path)["recipe"]["data"]["name"]]
    return str(data.get(named[-1]).meta.get("method", "full")) if named else "full"


def _check_pin(checkpoint: Path, layers: list[Layer]) -> None:
    """Hold the file to ``start.sha256``, where it is given, before anything else looks at it."""
    pins = [layer.values["start"]["sha256"] for layer in layers if "sha256" in layer.values.get("start", {})]
    if pins:
        from bigmodel_cli.engine.build.locate import check_pin, checkpoint_file

        check_pin(checkpoint_file(checkpoint), str(pins[-1]))


def _method(named: dict[str, Any], usual: Callable[[], str]) -> dict[str, Any]:
    """The fine-tuning method, and its options, that the flags in `named` say; the usual one where they say none.

    Raises:
        InputError: they name more than one.
    """
    method, rank = named["--method"], named["--lora"]
    given = [flag for flag, value in named.items() if value is not None]
    if len(given) > 1 and (method, given) != ("lora", ["--method", "--lora"]):
        raise InputError(" and ".join(given) + " together", "each names a fine-tuning method: expected one")
    if rank is not None:
        from bigmodel_cli.core.registry import methods

        takes_rank = method is None and "rank" in methods.get(usual()).schema.model_fields
        return {"method": usual() if takes_rank else "lora", "rank": rank}
    if named["--freeze-until"] is not None:
        return {"method": "freeze-until", "layer": named["--freeze-until"]}
    return {"method": "freeze-backbone" if named["--freeze-backbone"] else method or usual()}


def _chosen(checkpoint: Path | None, pretrained: bool, layers: list[Layer]) -> dict[str, Any]:
    """``--method auto``: the method that a short try of each found best on val."""
    from bigmodel_cli.core.resolve import resolve
    from bigmodel_cli.engine.experiments.auto_method import choose

    def recipe_of(start: dict[str, Any]) -> Recipe:
        return resolve(_start_layers(checkpoint, pretrained, start, layers)).recipe

    return {"method": choose(recipe_of, console.note)[0]}


def _start_layers(path: Path | None, pretrained: bool, start: dict[str, Any], given: list[Layer]) -> list[Layer]:
    """What the checkpoint remembers (model, data, loss, augmentation), fine-tuning's own defaults, what was `given`.

    Raises:
        InputError: not one start is named; `given` names another model than the checkpoint's, or
            none where the file remembers none.
    """
    from bigmodel_cli.core.registry import methods
    from bigmodel_cli.core.resolve import Layer

    if (path is None) != pretrained:
        what = "nothing to start from" if path is None else "--from and --pretrained together"
        raise InputError(what, "expected --from CKPT, or MODEL --pretrained", "bigmodel finetune --help")
    # A new head or adapter starts from noise and takes a full rate; trained weights take a gentle one.
    lr = methods.get(start["method"]).meta["lr"]
    gentle = Layer("finetune", {"train": {"epochs": 5}, "optimizer": {"name": "adamw", "lr": lr}})
    if path is None:
        return [gentle, Layer("--pretrained", {"start": {"pretrained": True, **start}}), *given]
    return _checkpoint_layers(path, [gentle, Layer("--from", {"start": start})], given)


def _checkpoint_layers(path: Path, defaults: list[Layer], given: list[Layer]) -> list[Layer]:
    from bigmodel_cli.core.resolve import Layer, resolve
    from bigmodel_cli.engine.build.foreign_weights import exported_model_section, is_foreign
    from bigmodel_cli.engine.build.load import load_meta
    from bigmodel_cli.engine.build.locate import checkpoint_file

    path = checkpoint_file(path)
    foreign = is_foreign(path)
    if foreign:
        kept = {"model": exported_model_section(path)}
        if not kept["model"] and not any("name" in layer.values.get("model", {}) for layer in given):
            hint = f"bigmodel finetune resnet18 --from {path} --data mnist"
            raise InputError(f"{path}: weights that name no model", "expected MODEL, whose weights they are", hint)
    else:
        remembered = load_meta(path)["recipe"]
        kept = {k: remembered[k] for k in ("model", "data", "loss", "augment")}
    from_ = Layer("--from", {"start": {"checkpoint": str(path.resolve())}})
    layers = [Layer(str(path), kept), *defaults, from_, *given]
    if foreign:
        layers.append(opt.tokenizer_layer(path.with_name("tokenizer.json"), layers))
        return [*layers, _shaped_layer(path, layers)]
    model = resolve(layers).recipe.model.name
    if model != kept["model"]["name"]:
        raise InputError(f"MODEL is {model}", f"{path} is {kept['model']['name']}", f"bigmodel finetune --from {path}")
    return layers


def _shaped_layer(path: Path, layers: list[Layer]) -> Layer:
    """The model's options that nobody gave and the shapes of foreign weights decide."""
    from bigmodel_cli.core.resolve import Layer, resolve
    from bigmodel_cli.engine.build.data import load_data
    from bigmodel_cli.engine.build.foreign_weights import infer_options

    resolved = resolve(layers)
    given = [key for section, key in resolved.origin if section == "model"]
    options = infer_options(resolved.recipe, given, load_data(resolved.recipe.data).spec, path)
    return Layer(str(path), {"model": options} if options else {})
