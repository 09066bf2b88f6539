"""The flags that commands share. A new one is one field of `RunOptions`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.arguments.component_names import complete, listed
from bigmodel_cli.commands.arguments.launch import Launch
from bigmodel_cli.commands.arguments.recipe_layers import Known, named_layers, resolve_data_path, task_in
from bigmodel_cli.commands.arguments.signatures import Flag, flags_of
from bigmodel_cli.core.readers.columns import read_columns

if TYPE_CHECKING:
    from bigmodel_cli.core.resolve import Layer


TASK_HELP = "What labels are, if not one class: multi_label_classification (several), regression (numbers)."
Checkpoint = Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint file, or a run folder for its best.pt.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Data folder.  [default: $BIGMODEL_DATA or ~/.cache/bigmodel]"),
    Flag(
        "data.dir",
        also=("audit", "compare", "eval", "predict", "plan", "study", "tune", "export", "compress", "verify-resume"),
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="ROLE=COLUMN,...",
        help="Columns of a table: image=id,label=breed; text=title+body; or numbers from 1 if it has no header.",
    ),
    Flag("data.columns", default="found by their names", also=("audit", "compare", "eval", "plan", "verify-resume")),
]
Encoding = Annotated[
    str | None,
    typer.Option("--encoding", metavar="NAME", help="Encoding of texts and tables: utf-8, latin-1, koi8-r, ..."),
    Flag("data.encoding", default="found by the content", also=("audit", "compare", "eval", "plan", "verify-resume")),
]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="CKPT is the name of a model: take its published weights.")
]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON, one object per line."), Flag()]
Tta = Annotated[
    bool,
    typer.Option("--tta", help="Test-time augmentation: average the predictions for each image and its mirror image."),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Open an export whose format can hold code, such as pt2: it runs with your rights."),
]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The flags of ``train`` and ``finetune``; other commands take those that name them in `Flag.also`.

    Each field declares its flag in full: type, name, help and completion for Typer, and in `Flag` the
    recipe field that it sets and what the default is. A flag that was not given is None and sets nothing.
    """

    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Model name, or recipe file.", autocompletion=complete("models")),
        Flag(also=("plan", "verify-resume")),
    ] = None
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="NAME|PATH",
            help="Data set, or path to your own images or text.",
            autocompletion=complete("data"),
        ),
        Flag("data.name", default="digits; texts: tales", also=("compare", "eval", "export", "plan", "verify-resume")),
    ] = None
    columns: Columns = None
    encoding: Encoding = None
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="NAME", help=TASK_HELP, autocompletion=complete("tasks")),
        Flag("data.task", default="the data's", also=("eval", "plan")),
    ] = None
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            metavar="COLUMN",
            help="Keep rows that are equal in COLUMN (patient, author) on one side when val is split off train.",
        ),
        Flag("data.group_by", also=("plan",)),
    ] = None
    folds: Annotated[
        int | None,
        typer.Option("--folds", metavar="K", help="Cross-validation: K runs, each without another part of train."),
        Flag("data.folds"),
    ] = None
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="FILE", help="Recipe file to start from; flags override it."),
        Flag(also=("plan", "verify-resume")),
    ] = None
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", metavar="N", help="Passes over the training split."),
        Flag("train.epochs", default="10", also=("plan", "study", "tune")),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", help="Samples per optimizer step, over all processes."),
        Flag("train.batch_size", default="128", also=("plan", "verify-resume")),
    ] = None
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="RATE", help="Peak learning rate."),
        Flag("optimizer.lr", default="the optimizer's"),
    ] = None
    optimizer: Annotated[
        str | None,
        typer.Option(
            "--optimizer",
            metavar="NAME",
            help=f"Optimizer: {listed('optimizers', 5)}",
            autocompletion=complete("optimizers"),
        ),
        Flag("optimizer.name", default="adamw", also=("plan",)),
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            metavar="NAME",
            help=f"Learning-rate schedule: {listed('schedules')}",
            autocompletion=complete("schedules"),
        ),
        Flag("schedule.name", default="one_cycle"),
    ] = None
    loss: Annotated[
        str | None,
        typer.Option(
            "--loss",
            metavar="NAME",
            help=f"Loss function: {listed('losses')}",
            autocompletion=complete("losses"),
        ),
        Flag("loss.name", default="cross_entropy"),
    ] = None
    balance: Annotated[
        str | None,
        typer.Option("--balance", metavar="HOW", help="Imbalanced classes: none, loss (weights) or sampling (draws)."),
        Flag("train.balance", default="none"),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Seed of initial weights, data order and augmentation."),
        Flag("train.seed", default="0"),
    ] = None
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="Device: auto, cpu, cuda, cuda:N or mps."),
        Flag(
            "placement.device",
            default="auto",
            also=("audit", "compare", "eval", "predict", "generate", "study", "tune", "verify-resume"),
        ),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="TYPE", help="Floating-point precision: auto, fp32 or bf16."),
        Flag("placement.precision", default="auto", also=("eval", "predict", "generate", "plan")),
    ] = None
    compile: Annotated[
        bool | None,
        typer.Option("--compile", help="Compile the model with torch.compile."),
        Flag("placement.compile", default="auto, measured", also=("plan",)),
    ] = None
    channels_last: Annotated[
        bool | None,
        typer.Option("--channels-last", help="Use the channels-last memory format."),
        Flag("placement.channels_last", default="auto, measured"),
    ] = None
    size: Annotated[
        int | None,
        typer.Option("--size", metavar="N", help="Side of the images that the model takes, in pixels."),
        Flag("model.image_size", default="the weights' own, else the data's", also=("plan",)),
    ] = None
    max_steps: Annotated[
        int | None,
        typer.Option("--max-steps", metavar="N", help="Stop after N optimizer steps."),
        Flag("train.max_steps", default="no limit", also=("plan", "study", "tune")),
    ] = None
    data_dir: DataDir = None
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set any other recipe field; repeatable."),
        Flag(also=("eval", "plan", "study", "tune", "verify-resume")),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Run folder."),
        Flag(default="runs/<model>-<data>-<n>"),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out from its last checkpoint."), Flag()
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out."), Flag()] = False
    profile: Annotated[
        bool | None,
        typer.Option("--profile", help="Write trace.json, a Chrome trace of a few steps."),
        Flag("train.profile"),
    ] = None
    log: Annotated[
        list[str] | None,
        typer.Option(
            "--log",
            metavar="NAME",
            help=f"Also log each epoch to: {listed('loggers')} Repeatable.",
            autocompletion=complete("loggers"),
        ),
        Flag(),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe and measure a step; train nothing."), Flag()
    ] = False
    json: Json = False
    private: Annotated[
        float | None,
        typer.Option("--private", metavar="EPSILON", help="Train with differential privacy (DP-SGD) of this epsilon."),
        Flag("privacy.epsilon", default="without"),
    ] = None
    nproc: Annotated[
        str | None,
        typer.Option("--nproc", metavar="auto|N", help="Processes on this host; auto: one per GPU, else per core."),
        Flag(default="1"),
    ] = None
    nnodes: Annotated[
        str | None,
        typer.Option("--nnodes", metavar="N|A:B", help="Hosts: N, or A to B (elastic training)."),
        Flag(default="1"),
    ] = None
    rdzv: Annotated[
        str | None,
        typer.Option("--rdzv", metavar="HOST:PORT", help="Rendezvous address, on one of the hosts."),
        Flag(),
    ] = None
    max_restarts: Annotated[
        int,
        typer.Option("--max-restarts", metavar="N", min=0, help="Restarts from the last checkpoint after a failure."),
        Flag(),
    ] = 0
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="Time without an answer after which a process is lost."),
        Flag("parallel.timeout", default="600"),
    ] = None

    def flag_layers(self, known: Known = Known()) -> list[Layer]:
        """One recipe layer for each flag that was given, then one for ``--set``; `known` is for want of a flag."""
        from bigmodel_cli.core.resolve import Layer, set_layer

        layers = []
        # Names first: naming another component drops the options of the previous one.
        for name, flag in sorted(flags_of(RunOptions), key=lambda pair: pair[1].path[1] != "name"):
            value = getattr(self, name)
            if flag.sets is None or value is None:
                continue
            section, key = flag.path
            values = None
            if name == "data":
                values = resolve_data_path(value, self.columns, replace(known, task=self.task or known.task))
            value = read_columns(value) if name == "columns" else value
            plain = str(value) if isinstance(value, Path) else value
            layers.append(Layer("--" + name.replace("_", "-"), {section: values or {key: plain}}))
        return [*layers, set_layer(self.assignments or [])]

    def recipe_layers(self, known: Known = Known()) -> list[Layer]:
        """The recipe file, the model's name, and every flag; see :meth:`flag_layers`."""
        named = named_layers(self.model, self.recipe)
        return [*named, *self.flag_layers(replace(known, task=task_in(named) or known.task))]

    def launch(self) -> Launch:
        """The processes to start."""
        return Launch(self.nproc, self.nnodes, self.rdzv, self.max_restarts)
