"""``bigmodel train`` and ``bigmodel finetune``: flags to layers, a recipe, a run, and what came of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.core.resolve import Layer, Resolved
    from bigmodel_cli.engine.session import Outcome


def train(
    model: opt.Model = None,
    data: opt.Data = None,
    recipe: opt.RecipeFile = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    optimizer: opt.Optimizer = None,
    schedule: opt.Schedule = None,
    loss: opt.Loss = None,
    seed: opt.Seed = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    max_steps: opt.MaxSteps = None,
    data_dir: opt.DataDir = None,
    assignments: opt.Set = None,
    out: opt.Out = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
) -> None:
    """Train a model from zero.

    Examples:

        bigmodel train resnet18 --data digits

        bigmodel train recipes/image/mnist-cnn.yaml --epochs 3

        bigmodel train --resume --out runs/resnet18-digits-1
    """
    flags = {k: v for k, v in locals().items() if k in opt.FLAGS}
    layers = opt.base_layers(model, recipe)
    if resume and not layers:
        layers = _saved_recipe(out)
    layers += opt.flag_layers(flags, assignments)
    _go(layers, out, resume, overwrite, dry_run, json)


def finetune(
    model: opt.Model = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--from", metavar="CKPT", help="Checkpoint, or anyone's .pt or .safetensors weights.")
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from MODEL's published weights.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing.")] = False,
    method: opt.Method = None,
    freeze_backbone: Annotated[bool, typer.Option("--freeze-backbone", help="Train the head alone.")] = False,
    lora: Annotated[int | None, typer.Option("--lora", metavar="R", help="Train adapters of rank R.")] = None,
    data: opt.Data = None,
    recipe: opt.RecipeFile = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    optimizer: opt.Optimizer = None,
    schedule: opt.Schedule = None,
    loss: opt.Loss = None,
    seed: opt.Seed = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    max_steps: opt.MaxSteps = None,
    data_dir: opt.DataDir = None,
    assignments: opt.Set = None,
    out: opt.Out = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
) -> None:
    """Go on from a checkpoint, on its own data or on other data; or from MODEL's published weights.

    Examples:

        bigmodel finetune --from runs/resnet18-digits-1/best.pt --freeze-backbone

        bigmodel finetune --from ckpt.pt --data mnist --epochs 2 --lr 3e-4

        bigmodel finetune --from ckpt.pt --method freeze-until --set start.layer=layer4

        bigmodel finetune resnet18 --from resnet18.safetensors --data mnist

        bigmodel finetune timm:resnet18 --pretrained --data cifar10 --lora 8
    """
    flags = {k: v for k, v in locals().items() if k in opt.FLAGS}
    start = _method(method, freeze_backbone, lora)
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # as the hub's own tools say it
    layers = [*opt.base_layers(model, recipe), *opt.flag_layers(flags, assignments)]
    _go(_start_layers(checkpoint, pretrained, start, layers), out, resume, overwrite, dry_run, json)


def _method(method: str | None, freeze_backbone: bool, rank: int | None) -> dict[str, Any]:
    """The fine-tuning method, and its options, that the flags name.

    Raises:
        InputError: they name more than one.
    """
    named = {"--method": method, "--freeze-backbone": freeze_backbone or None, "--lora": rank}
    given = [flag for flag, value in named.items() if value is not None]
    if len(given) > 1 and (method, given) != ("lora", ["--method", "--lora"]):
        raise InputError(" and ".join(given) + " together", "each names a fine-tuning method: expected one")
    if rank is not None:
        return {"method": "lora", "rank": rank}
    return {"method": "freeze-backbone" if freeze_backbone else method or "full"}


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
    from bigmodel_cli.engine.foreign import architecture, is_foreign
    from bigmodel_cli.engine.start import checkpoint_file, load_meta

    path = checkpoint_file(path)
    foreign = is_foreign(path)
    if foreign:
        kept = {"model": architecture(path)}
        if not kept["model"] and not any("name" in layer.values.get("model", {}) for layer in given):
            hint = f"bigmodel finetune resnet18 --from {path} --data mnist"
            raise InputError(f"{path}: weights that name no model", "expected MODEL, whose weights they are", hint)
    else:
        remembered = load_meta(path)["recipe"]
        kept = {k: remembered[k] for k in ("model", "data", "loss", "augment")}
    from_ = Layer("--from", {"start": {"checkpoint": str(path.resolve())}})
    layers = [Layer(str(path), kept), *defaults, from_, *given]
    if foreign:
        return [*layers, _shaped_layer(path, layers)]
    model = resolve(layers).recipe.model.name
    if model != kept["model"]["name"]:
        raise InputError(f"MODEL is {model}", f"{path} is {kept['model']['name']}", f"bigmodel finetune --from {path}")
    return layers


def _shaped_layer(path: Path, layers: list[Layer]) -> Layer:
    """The model's options that nobody gave and the shapes of foreign weights decide."""
    from bigmodel_cli.core.resolve import Layer, resolve
    from bigmodel_cli.engine.assemble import load_data
    from bigmodel_cli.engine.foreign import missing_options

    resolved = resolve(layers)
    given = [key for section, key in resolved.origin if section == "model"]
    options = missing_options(resolved.recipe, given, load_data(resolved.recipe.data).spec, path)
    return Layer(str(path), {"model": options} if options else {})


def _saved_recipe(out: Path | None) -> list[Layer]:
    from bigmodel_cli.core.resolve import document_layer
    from bigmodel_cli.core.strict_yaml import read_yaml

    if out is None:
        raise InputError(
            "--resume needs the run to continue", "give --out RUN", "bigmodel train --resume --out runs/..."
        )
    file = out / "recipe.yaml"
    if not file.exists():
        raise InputError(f"{out}: no run to resume", "expected its recipe.yaml", f"bigmodel train MODEL --out {out}")
    return [document_layer(read_yaml(file), str(file))]


def _go(layers: list[Layer], out: Path | None, resume: bool, overwrite: bool, dry_run: bool, json: bool) -> None:
    from bigmodel_cli.core.resolve import resolve
    from bigmodel_cli.engine.folder import RunFolder

    if resume and out is None:
        raise InputError("--resume needs the run to continue", "give its folder with --out")
    resolved = resolve(layers)
    recipe = resolved.recipe
    stem = f"{recipe.model.name}-{recipe.data.name}".replace(":", "-")
    folder = RunFolder(out, stem, resume=resume, overwrite=overwrite)
    if dry_run:
        _dry_run(resolved, out or Path("runs"), json)
    else:
        _train(recipe, folder, json)


def _train(recipe: Recipe, folder: Any, json: bool) -> None:
    from bigmodel_cli.commands.progress import WaitBars, for_output
    from bigmodel_cli.engine.session import train as run

    with WaitBars(), for_output(json) as display:
        outcome = run(recipe, folder, display.emit)
    _write_report(recipe, outcome)
    if json:
        console.print_json(outcome.to_dict())
    else:
        show_outcome(outcome)


def _dry_run(resolved: Resolved, folder: Path, json: bool) -> None:
    from bigmodel_cli.commands.preflight import preflight

    preflight(resolved, folder, json)


def _write_report(recipe: Recipe, outcome: Outcome) -> None:
    from bigmodel_cli.core.strict_yaml import dump_yaml
    from bigmodel_cli.insight.report import read_events, write_report

    title = f"{recipe.model.name} on {recipe.data.name}"
    events = read_events(outcome.folder / "metrics.jsonl")
    path = outcome.folder / "report.html"
    write_report(path, title=title, recipe_text=dump_yaml(recipe.to_dict()), events=events, final=outcome.to_dict())


def show_outcome(outcome: Outcome) -> None:
    """What trained, where not everything did; the result, before and after; and what to do next."""
    run = outcome.run
    if run.frozen.tensors:
        console.show(frozen_table(run))
        console.say(f"{len(run.frozen.tensors)} frozen tensors checked: byte-identical")
    if outcome.before:
        console.show(method_table(outcome))
    metrics = ", ".join(f"{k.replace('_', ' ')} {figure(k, v)}" for k, v in outcome.metrics.items())
    console.say(f"{metrics}; {run.progress.step} steps in {outcome.seconds:.1f} s")
    if run.watch.verdict():
        console.say(run.watch.verdict())
    console.say(f"best checkpoint {outcome.best}, report {outcome.folder / 'report.html'}")
    console.say(f"next: bigmodel eval {outcome.best} --split test")


def figure(name: str, value: float) -> str:
    return f"{value:.2%}" if name.endswith("accuracy") else f"{value:.4g}"


def method_table(outcome: Outcome) -> Any:
    """What the method trained, what that changed on val, and how long it took."""
    run = outcome.run
    parameters = list(run.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    rows = [
        ("method", run.recipe.start.method),
        ("parameters trained", f"{trained:,} of {total:,} ({trained / total:.2%})"),
        *(
            (name.replace("_", " "), f"{figure(name, outcome.before[name])} -> {figure(name, value)}")
            for name, value in outcome.metrics.items()
            if name in outcome.before
        ),
        ("time", f"{outcome.seconds:.1f} s"),
    ]
    return console.table("fine-tuning", ("what", "value"), rows)


def frozen_table(run: Any) -> Any:
    """What trains and what does not, parameters and buffers, by the model's top-level parts."""
    parts: dict[str, list[int]] = {}
    trainable = {name for name, p in run.model.named_parameters() if p.requires_grad}
    parameters = {name for name, _ in run.model.named_parameters()}
    for name, tensor in run.model.state_dict().items():
        counts = parts.setdefault(name.split(".")[0], [0, 0, 0, 0])
        frozen = name in run.frozen.tensors
        column = (0 if name in trainable else 1) if name in parameters else (3 if frozen else 2)
        counts[column] += tensor.numel()
    heads = ("part", "parameters trained", "parameters frozen", "buffers updated", "buffers frozen")
    rows = [(part, *(f"{n:,}" if n else "-" for n in counts)) for part, counts in parts.items()]
    totals = [sum(c[i] for c in parts.values()) for i in range(4)]
    return console.table(None, heads, [*rows, ("total", *(f"{n:,}" if n else "-" for n in totals))], right=True)
