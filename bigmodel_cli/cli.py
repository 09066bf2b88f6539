"""The Typer app. A BigmodelError becomes its line and exit code here, once."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import bigmodel_cli
from bigmodel_cli.commands import (
    checkpoint,
    compress,
    console,
    data,
    env_check,
    evaluate,
    explain,
    export,
    finetune,
    generate,
    listing,
    plan,
    predict,
    recipe,
    reproduce,
    serve,
    study,
    train,
    tune,
)
from bigmodel_cli.core.errors import BigmodelError, InterruptedRun


class Group(TyperGroup):
    """Lists each command with its whole first sentence; Typer alone would cut it at the end of the line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        shown = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, c.get_short_help_str(limit=400)) for name, c in shown if not c.hidden])


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # as markup, "[default: ...]" in a help text would vanish
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help="Train, fine-tune, evaluate, compress, export and serve models.",
    epilog="Start with: bigmodel train resnet18 --data digits",
)


def _version(requested: bool) -> None:
    if requested:
        console.say(f"bigmodel {bigmodel_cli.__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["BIGMODEL_DEBUG"] = "1"


app.command()(train.train)
app.command()(finetune.finetune)
app.command()(study.study)
app.command()(tune.tune)
app.command()(plan.plan)
app.command("eval")(evaluate.evaluate)
app.command()(predict.predict)
app.command()(explain.explain)
app.command()(generate.generate)
app.command()(export.export)
app.command()(compress.compress)
app.command()(serve.serve)
app.command()(reproduce.reproduce)
app.command("verify-resume")(reproduce.verify_resume)
app.command("env-check")(env_check.env_check)
app.command("models")(listing.models_command)
app.add_typer(data.app, name="data", cls=Group)
app.command("recipes")(listing.recipes_command)
app.add_typer(recipe.app, name="recipe", cls=Group)
app.add_typer(checkpoint.app, name="checkpoint", cls=Group)


def main() -> None:
    """Run the command line. Its exit code is decided here."""
    gc.set_threshold(100_000)  # saves 0.2 s of garbage collection while torch is imported; placement resets it
    atexit.register(_end_at_once)  # registered first, so called last, after the handlers of whatever a command imports
    try:
        _run()
    except SystemExit as end:
        _ended.append(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


_ended: list[int] = []


def _end_at_once() -> None:
    """End the process once threads are joined and handlers have run: unloading torch's modules takes 0.4 s more."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # Python reports it
        return
    if _ended:
        os._exit(_ended[0])


def _run() -> None:
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except BigmodelError as error:
        _debug()
        console.error(error)
        _leave(error.exit_code)
    except BrokenPipeError:  # the reader of the pipe has exited, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(128 + signal.SIGPIPE)
    except Exception as error:
        _debug()
        hint = "; ".join([*getattr(error, "__notes__", ()), "bigmodel --debug COMMAND shows the traceback"])
        console.error(BigmodelError(f"a bug in bigmodel: {type(error).__name__}: {error}", hint=hint))
        _leave(1)


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise InterruptedRun(signum, "interrupted")


def _debug() -> None:
    if os.environ.get("BIGMODEL_DEBUG"):
        raise


def _leave(code: int) -> NoReturn:
    raise SystemExit(code)
