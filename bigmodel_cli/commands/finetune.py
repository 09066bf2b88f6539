"""``bigmodel finetune``: where to start from and what to train of it; the rest is as in ``train``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.arguments.options import RunOptions, complete
from bigmodel_cli.commands.arguments.recipe_layers import Known, expand_hub_model, named_layers, task_in
from bigmodel_cli.commands.arguments.signatures import takes_options
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.train import run_training, saved_recipe
from bigmodel_cli.commands.training.finetune_layers import StartLayers, start_layers
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import commands
from bigmodel_cli.engine.device.ranks import read_ranks

if TYPE_CHECKING:
    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.core.resolve import Layer

From = Annotated[
    Path | None,
    typer.Option("--from", metavar="CKPT", help="Checkpoint, run folder, or any .pt or .safetensors file of weights."),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="Method: auto (try several), full, lora, probe, ...  [default: what the data is for, else full]",
        autocompletion=complete("methods"),
    ),
]
FreezeUntil = Annotated[
    str | None, typer.Option("--freeze-until", metavar="LAYER", help="Train LAYER and the layers after it.")
]
Lora = Annotated[int | None, typer.Option("--lora", metavar="R", help="Train LoRA adapters of rank R.")]


@commands.register(order=20)
@takes_options(
    "finetune",
    data="the checkpoint's",
    loss="the checkpoint's",
    epochs="by the data",
    batch_size="by the data",
    lr="the method's",
)
def finetune(
    *,
    checkpoint: From = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from MODEL's published weights.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing; use what is cached.")] = False,
    method: Method = None,
    freeze_backbone: Annotated[bool, typer.Option("--freeze-backbone", help="Train only the head.")] = False,
    freeze_until: FreezeUntil = None,
    lora: Lora = None,
    options: RunOptions,
) -> None:
    """Fine-tune a checkpoint, or a model's published weights, on the same or other data.

    Examples:

        bigmodel finetune --from runs/resnet18-digits-1 --freeze-backbone

        bigmodel finetune --from ckpt.pt --data mnist --epochs 2 --lr 3e-4

        bigmodel finetune --from ckpt.pt --freeze-until layer4

        bigmodel finetune --from ckpt.pt --method auto

        bigmodel finetune --from ckpt.pt --data pairs-of-answers.jsonl --lora 8

        bigmodel finetune resnet18 --from resnet18.safetensors --data mnist

        bigmodel finetune timm:resnet18 --pretrained --data cifar10 --lora 8

        bigmodel finetune --resume --out runs/resnet18-digits-2
    """
    if checkpoint is None and not pretrained and options.model is not None and _is_weights(options.model):
        checkpoint, options = Path(options.model), replace(options, model=None)  # `finetune runs/x`: as --from runs/x
    os.environ |= {"HF_HUB_OFFLINE": "1"} if offline else {}  # the variable that huggingface_hub reads
    names_start = checkpoint is not None or pretrained or options.model is not None or options.recipe is not None
    if options.resume and (not names_start or method == "auto"):  # the run knows its start, and what auto chose
        saved = saved_recipe(options.out)
        run_training([*saved, *options.flag_layers(Known(task_in(saved)))], options)
        return
    from bigmodel_cli.engine.build.data import reading_once  # needs torch

    layers = expand_hub_model(options.recipe_layers(_known(checkpoint, options)), pretrained)
    named = {"--method": method, "--freeze-backbone": freeze_backbone or None, "--freeze-until": freeze_until}
    start = _start_section({**named, "--lora": lora}, lambda: default_method(layers, checkpoint))
    if method == "auto" and options.launch().requested:
        hint = "run it without --nproc, then finetune --method NAME --nproc N"
        raise InputError("--method auto runs in one process", hint=hint)
    with reading_once():  # the data decides defaults, and is then trained on
        chosen = _chosen(checkpoint, pretrained, layers) if method == "auto" else start
        run_training(_told(start_layers(checkpoint, pretrained, chosen, layers), options), options)


def _is_weights(name: str) -> bool:
    """Whether MODEL is a run folder or a file of weights, rather than a model's name or a recipe."""
    path = Path(name)
    return path.suffix in (".pt", ".safetensors") or (path.is_dir() and any(path.glob("*.pt")))


def _told(start: StartLayers, options: RunOptions) -> list[Layer]:
    """The layers of `start`, after its lines on the defaults, which one process says."""
    if not options.launch().requested and read_ranks().rank == 0:
        for line in start.notes:
            console.note(line)
    return start.layers


def default_method(layers: list[Layer], checkpoint: Path | None) -> str:
    """The method that the data is made for, as preference pairs are for dpo; else full."""
    from bigmodel_cli.core.registry import data
    from bigmodel_cli.engine.build.foreign_weights import is_foreign
    from bigmodel_cli.engine.build.load import load_meta
    from bigmodel_cli.engine.build.locate import checkpoint_file

    named = [layer.values["data"]["name"] for layer in layers if "name" in layer.values.get("data", {})]
    if not named and checkpoint is not None and not is_foreign(path := checkpoint_file(checkpoint)):
        named = [load_meta(path)["recipe"]["data"]["name"]]
    return str(data.get(named[-1]).meta.get("method", "full")) if named else "full"


def _known(checkpoint: Path | None, options: RunOptions) -> Known:
    """What the checkpoint says of new data, if there is any; its pin is checked first."""
    from bigmodel_cli.core.resolve import set_layer

    if checkpoint is None:
        return Known()
    _check_pin(checkpoint, [*named_layers(options.model, options.recipe), set_layer(options.assignments or [])])
    return known_of(checkpoint) if options.data else Known()


def known_of(checkpoint: Path) -> Known:
    """What the checkpoint says of new data; weights of another program say nothing."""
    from bigmodel_cli.engine.build.foreign_weights import is_foreign
    from bigmodel_cli.engine.build.load import load_meta
    from bigmodel_cli.engine.build.locate import checkpoint_file

    path = checkpoint_file(checkpoint)
    return Known() if is_foreign(path) else Known.of(load_meta(path)["recipe"].get("data", {}))


def _check_pin(checkpoint: Path, layers: list[Layer]) -> None:
    """Check the file against ``start.sha256``, where that is given, before anything else reads it."""
    pins = [layer.values["start"]["sha256"] for layer in layers if "sha256" in layer.values.get("start", {})]
    if pins:
        from bigmodel_cli.engine.build.locate import check_pin, checkpoint_file

        check_pin(checkpoint_file(checkpoint), str(pins[-1]))


def _start_section(named: dict[str, Any], default_method: Callable[[], str]) -> dict[str, Any]:
    """The fine-tuning method and its options, from the flags in `named`; `default_method` where they name none.

    Raises:
        InputError: they name more than one method.
    """
    method, rank = named["--method"], named["--lora"]
    given = [flag for flag, value in named.items() if value is not None]
    if len(given) > 1 and (method, given) != ("lora", ["--method", "--lora"]):
        raise InputError(" and ".join(given) + " together", "expected one: each names a fine-tuning method")
    if rank is not None:
        from bigmodel_cli.core.registry import methods

        takes_rank = method is None and "rank" in methods.get(default_method()).schema.model_fields
        return {"method": default_method() if takes_rank else "lora", "rank": rank}
    if named["--freeze-until"] is not None:
        return {"method": "freeze-until", "layer": named["--freeze-until"]}
    return {"method": "freeze-backbone" if named["--freeze-backbone"] else method or default_method()}


def _chosen(checkpoint: Path | None, pretrained: bool, layers: list[Layer]) -> dict[str, Any]:
    """``--method auto``: the method with the best val metric after a short trial of each."""
    from bigmodel_cli.core.resolve import resolve
    from bigmodel_cli.engine.experiments.auto_method import choose

    def recipe_of(start: dict[str, Any]) -> Recipe:
        return resolve(start_layers(checkpoint, pretrained, start, layers).layers).recipe.of_fold(1)

    return {"method": choose(recipe_of, console.note)[0]}
