"""What a command line gets wrong, in one line with the words to type: also words that other programs use."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from typer._click.exceptions import ClickException, MissingParameter, NoArgsIsHelpError, NoSuchOption, UsageError

from bigmodel_cli.core.errors import BigmodelError, InputError, nearest
from bigmodel_cli.core.registry import commands, exports

SAME_FLAG = {
    "--lr": "learning-rate lr0 base-lr max-lr peak-lr rate",
    "--epochs": "epoch num-epochs n-epochs num-train-epochs max-epochs nb-epochs e",
    "--batch-size": "batch bs batchsize train-batch-size per-device-train-batch-size b",
    "--size": "imgsz img-size image-size imagesize input-size resolution crop-size img",
    "--out": "output output-dir outdir save-dir savedir project name log-dir o",
    "--optimizer": "opt optim",
    "--schedule": "sched scheduler lr-scheduler lr-scheduler-type lr-schedule",
    "--loss": "criterion loss-fn loss-function",
    "--data": "dataset data-path train-data train-dir train-file input source d",
    "--data-dir": "data-root datadir root",
    "--precision": "amp fp16 bf16 mixed-precision dtype half",
    "--nproc": "gpus num-gpus n-gpus devices num-processes nproc-per-node world-size",
    "--device": "gpu gpu-id gpu-ids cuda no-cuda accelerator",
    "--from": "weights checkpoint ckpt init-from finetune-from model-name-or-path initial-checkpoint",
    "--resume": "continue resume-from resume-from-checkpoint auto-resume",
    "--overwrite": "force overwrite-output-dir exist-ok f",
    "--recipe": "config cfg conf yaml c",
    "--log": "logger report-to wandb tensorboard mlflow",
    "--max-steps": "steps iters iterations max-iters max-iterations n-iter",
    "--seed": "random-seed random-state",
    "--balance": "class-weights class-weight weighted",
    "--compile": "torchcompile torch-compile jit",
    "--format": "fmt to type export-format",
    "--json": "as-json",
    "--metric": "metrics",
    "--split": "subset",
    "--version": "v version",
}
"""A flag, and what other programs call it."""
SAME_FIELD = {
    "optimizer.weight_decay": "weight-decay wd decay l2",
    "optimizer.momentum": "momentum",
    "optimizer.betas": "betas beta1 beta2 adam-beta1 adam-beta2",
    "loss.label_smoothing": "label-smoothing smoothing",
    "schedule.warmup": "warmup warmup-ratio warmup-steps warmup-epochs",
    "train.accumulate": "grad-accum grad-accum-steps accumulate-grad-batches gradient-accumulation-steps",
    "train.clip_norm": "clip grad-clip clip-grad max-grad-norm gradient-clip-val clipnorm",
    "train.patience": "early-stopping early-stop",
    "train.ema_decay": "ema model-ema",
    "data.val_fraction": "val-split val-size validation-split test-size val",
    "augment.name": "augment augmentation aug auto-augment aa mixup cutmix",
    "model.dropout": "drop drop-rate",
    "placement.threads": "threads num-threads",
}
"""A recipe field, and the flags that other programs have for it."""
NOT_NEEDED = {
    "workers num-workers dataloader-num-workers j loader-workers": "files are decoded on all cores, once; none to set",
    "pin-memory prefetch-factor persistent-workers": "batches are prepared ahead on their own; nothing to set",
    "verbose": "progress is shown on stderr; --debug shows tracebacks",
    "quiet silent q": "results go to stdout, progress to stderr: 2>/dev/null hides it",
    "num-classes nc classes": "classes are counted in the data",
    "cpu": "--device cpu",
    "yes y": "nothing asks for confirmation",
}
SAME_COMMAND = {
    "train": "fit learn pretrain run",
    "finetune": "fine-tune ft transfer tune-model sft",
    "eval": "evaluate test val validate score benchmark",
    "predict": "infer inference classify detect inference-api",
    "generate": "chat complete sample text",
    "export": "convert save deploy onnx",
    "serve": "server api deploy-server",
    "compress": "quantize quantise prune distill",
    "tune": "search optimize optimise sweep hpo hparams",
    "env-check": "doctor check env info collect-env system checks settings",
    "models": "list-models zoo list",
    "recipe": "config configs",
    "checkpoint": "inspect show",
    "plan": "estimate memory cost",
    "data": "dataset datasets",
}
DERIVED_FORMATS = {"tensorrt": "onnx", "trt": "onnx", "engine": "onnx", "tflite": "litert", "tf": "litert",
                   "mlmodel": "coreml", "mlpackage": "coreml", "script": "torchscript", "pte": "executorch",
                   "gguf": "huggingface", "ncnn": "onnx", "pb": "litert"}  # fmt: skip
"""Formats that other programs make, and ours that they are made of."""


def as_usage_error(error: BaseException) -> BigmodelError | None:
    """Typer's error about the command line as ours; None where `error` is another one."""
    if not isinstance(error, ClickException) or isinstance(error, NoArgsIsHelpError):
        return None
    context = error.ctx if isinstance(error, UsageError) else None
    helped = f"{context.command_path if context else 'bigmodel'} --help"
    if isinstance(error, NoSuchOption):
        return _no_such_option(error, helped)
    if isinstance(error, MissingParameter) and error.param is not None and context is not None:
        wanted: Any = error.param  # an argument or an option of Typer
        return InputError(f"{wanted.metavar or wanted.opts[0]} is missing", _purpose(wanted), helped)
    said = error.format_message().rstrip(".")
    if match := re.match(r"No such command '(.*?)'", said):
        return _no_such_command(match[1], context, helped)
    if match := re.match(r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)", said):
        return _extra_argument(match[1], context, helped)
    if match := re.match(r"Invalid value for '?(.*?)'?: (.*)", said):
        return InputError(f"{match[1]}: {match[2][0].lower()}{match[2][1:]}", hint=helped)
    return InputError(said[0].lower() + said[1:], hint=helped)


def _purpose(parameter: Any) -> str | None:
    text = parameter.help
    return f"expected: {text.rstrip('.').partition('  [')[0]}" if text else None


def _no_such_option(error: NoSuchOption, helped: str) -> InputError:
    typed, context = error.option_name, error.ctx
    named = [opt for parameter in context.command.params for opt in parameter.opts] if context else []
    own = [opt for opt in named if opt.startswith("-")]  # an argument has no flag
    word = _plain(typed)
    what = f"no such option {typed}"
    for words, why in NOT_NEEDED.items():
        if word in words.split():
            return InputError(what, why, helped)
    same = next((ours for ours, words in SAME_FLAG.items() if word in words.split()), f"--{word}")
    if same in own:
        return InputError(what, f"here it is {same}", helped)
    if same == "--version":
        return InputError(what, hint="bigmodel --version")
    if same == "--from" and "--set" in own:
        return InputError(what, "to start from weights, use finetune", "bigmodel finetune --from CKPT")
    if context is not None and difflib.get_close_matches(word, ("model", "arch", "architecture"), cutoff=0.8):
        return InputError(what, "the model is named without a flag", f"{context.command_path} resnet18")
    if "--set" in own and (field := _field(word)) is not None:
        return InputError(what, f"here it is a recipe field: --set {field}=...", helped)
    return InputError(what, _close(typed, own), helped)


def _close(name: str, known: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(name, sorted(set(known)), n=2, cutoff=0.65)
    return f"did you mean {' or '.join(close)}?" if close else None


def _plain(flag: str) -> str:
    return flag.lstrip("-").replace("_", "-").lower()


def _field(word: str) -> str | None:
    """The recipe field that `word` names: by another program's name for it, or by its own."""
    from bigmodel_cli.core.recipe import Recipe

    for field, words in SAME_FIELD.items():
        if word in words.split():
            return field
    for section, found in Recipe.model_fields.items():
        if word.replace("-", "_") in getattr(found.annotation, "model_fields", {}):
            return f"{section}.{word.replace('-', '_')}"
    return None


def _no_such_command(name: str, context: Any, helped: str) -> InputError:
    group = context.command if context is not None else None
    known: Sequence[str] = group.list_commands(context) if group is not None else sorted(commands.found)
    what = f"no such command {name!r}"
    if "train" not in known:  # a command of commands, such as data
        return InputError(what, nearest(name, known), helped)
    same = next((ours for ours, words in SAME_COMMAND.items() if name.lower() in words.split()), None)
    if same is not None:
        return InputError(what, f"here it is bigmodel {same}", f"bigmodel {same} --help")
    from bigmodel_cli.core.registry import models

    if models.current(name) in models.found or name.endswith((".yaml", ".yml")):
        return InputError(what, "a model is trained by train", f"bigmodel train {name}")
    return InputError(what, _close(name, known), helped)


def _extra_argument(given: str, context: Any, helped: str) -> InputError:
    first = given.split()[0]
    command = context.info_name if context is not None else ""
    if command == "export":
        return _extra_format(first)
    what = f"one argument too many: {first}"
    options = [opt for parameter in context.command.params for opt in parameter.opts] if context is not None else []
    if "--data" in options:
        from bigmodel_cli.core.registry import data

        if "/" in first or data.current(first) in data.found:
            return InputError(what, "data has a flag", f"--data {first}")
    return InputError(what, hint=helped)


def _extra_format(first: str) -> InputError:
    what = f"one argument too many: {first}"
    name = exports.current(first)
    if name in exports.found:
        return InputError(what, "the format has a flag", f"--format {name}")
    if first.lower() in DERIVED_FORMATS:
        return derived_format(first)
    return InputError(what, f"the format has a flag; {nearest(first, exports.names())}", "--format NAME")


def derived_format(name: str) -> InputError:
    """The error for a format that another program makes from one of ours."""
    ours = DERIVED_FORMATS[name.lower()]
    return InputError(f"no export format {name!r}", f"it is made from {ours} by a tool of its own", f"--format {ours}")
