"""The command line: which commands there are, files of one's own, and how every way to end becomes an exit code."""

from __future__ import annotations

import atexit
import copy
import gc
import os
import signal
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

import bigmodel_cli
from bigmodel_cli.commands import console
from bigmodel_cli.core.errors import BigmodelError, InterruptedRun
from bigmodel_cli.core.registry import commands

IMPORT = "Run a Python file with components of your own first."
LAST = 1000
"""The place in the list of a command that does not say its own: behind ours, plug-ins' by name."""


class Group(TyperGroup):
    """Lists each command with its whole first sentence; Typer alone would cut it at the end of the line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.summary(ctx, name)) for name in self.list_commands(ctx)])

    def summary(self, ctx: Any, name: str) -> str:
        return self.commands[name].get_short_help_str(limit=400)


class Registered(Group):
    """The commands of the registry. A list of them imports none; one that is run is the only one imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        found = commands.found
        return sorted(found, key=lambda name: (found[name].meta.get("order", LAST), name))

    def summary(self, ctx: Any, name: str) -> str:
        return TyperCommand(name, help=commands.found[name].summary).get_short_help_str(limit=400)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in commands.found:
            return None
        if cmd_name not in self.commands:
            importing = next(option for option in self.params if "--import" in option.opts)
            self.commands[cmd_name] = _built(cmd_name, importing)
        return self.commands[cmd_name]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """``--import FILE.py``, wherever it stands, comes before the command: the file may hold that very one."""
        return super().parse_args(ctx, with_imports_first(args))


def _built(name: str, importing: Any) -> Any:
    """The command `name`, or the group of commands, as Typer makes it of its function.

    Args:
        importing: the option ``--import``, which each command's help shows though it is taken before the command.
    """
    entry = commands.get(name)
    parent = typer.Typer(add_completion=False, rich_markup_mode=None)
    parent.callback()(lambda: None)  # without which a single command would be the whole
    if "app" in entry.meta:
        parent.add_typer(entry.meta["app"], name=name, cls=Group)
    else:
        parent.command(name)(entry.function)
    built = typer.main.get_group(parent).commands[name]
    shown = copy.copy(importing)
    shown.expose_value, shown.is_eager, shown.callback = False, False, None
    for command in (built, *getattr(built, "commands", {}).values()):
        command.params.append(shown)
    return built


def with_imports_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with each ``--import FILE.py`` before the command's name; what stands behind ``--`` stays."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    rest, found, waiting = list[str](), list[str](), iter(arguments[:end])
    for argument in waiting:
        if argument == "--import":
            given = [argument, *islice(waiting, 1)]
            (found if len(given) == 2 else rest).extend(given)  # click refuses one without a file
        else:
            (found if argument.startswith("--import=") else rest).append(argument)
    name = next((i for i, argument in enumerate(rest) if not argument.startswith("-")), 0)
    return [*rest[:name], *found, *rest[name:], *arguments[end:]]


app = typer.Typer(
    cls=Registered,
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


def _debugged(wanted: bool) -> None:
    if wanted:
        os.environ["BIGMODEL_DEBUG"] = "1"


def _imported(context: typer.Context, files: list[Path] | None) -> None:
    """Run the files, each once, and say so: where a job has several processes, the first says it for all."""
    from bigmodel_cli.core.plugins import import_file

    speaks = "BIGMODEL_LAUNCHER" not in os.environ and os.environ.get("RANK", "0") == "0"
    for file in files or ():
        if not context.resilient_parsing:  # to complete a word, nobody's code is run
            import_file(file, console.note if speaks else lambda line: None)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", callback=_debugged, is_eager=True, help="Show tracebacks.")] = False,
    imports: Annotated[
        list[Path] | None,
        typer.Option("--import", metavar="FILE.py", callback=_imported, is_eager=True, help=IMPORT),
    ] = None,
) -> None: ...


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
