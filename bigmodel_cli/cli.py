"""The command line: lists and runs commands, handles ``--import``, and maps every outcome to an exit code."""

from __future__ import annotations

import atexit
import contextlib
import copy
import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer._click.exceptions import NoArgsIsHelpError
from typer.core import TyperCommand, TyperGroup

import bigmodel_cli
from bigmodel_cli.commands.arguments.remote_paths import with_addresses
from bigmodel_cli.commands.arguments.usage_errors import as_usage_error
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.isolation import supervised
from bigmodel_cli.core.errors import BigmodelError, CommandEnd, InterruptedRun, MachineError, as_machine_error
from bigmodel_cli.core.processes.children import hear_of_children, isolate_children
from bigmodel_cli.core.processes.stop_signals import SIGPIPE
from bigmodel_cli.core.registry import commands

IMPORT = "Run a Python file that registers your own components first."
LAST = 1000
"""The default order of a command in the list: after the built-in ones, sorted by name."""


class Command(TyperCommand):
    def make_context(self, *args: Any, **extra: Any) -> Any:
        with console.writing():  # it may print help
            return super().make_context(*args, **extra)


class Group(TyperGroup):
    """Lists each command with its whole first sentence, which Typer would truncate at the end of the line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.summary(ctx, name)) for name in self.list_commands(ctx)])

    def summary(self, ctx: Any, name: str) -> str:
        return self.commands[name].get_short_help_str(limit=400)


class Registered(Group):
    """The commands of the registry. Listing them imports none; running one imports only that one."""

    def list_commands(self, ctx: Any) -> list[str]:
        found = commands.found
        return sorted(found, key=lambda name: (found[name].meta.get("order", LAST), name))

    def summary(self, ctx: Any, name: str) -> str:
        return TyperCommand(name, help=commands.found[name].summary).get_short_help_str(limit=400)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in commands.found:
            return None
        if cmd_name not in self.commands:
            import_option = next(option for option in self.params if "--import" in option.opts)
            self.commands[cmd_name] = _build(cmd_name, import_option)
        return self.commands[cmd_name]

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _own_closed_pipe(), console.writing():  # it may print help
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        _require_working_folder()
        with _own_closed_pipe():
            return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move every ``--import FILE.py`` before the command, since the file may define that command."""
        return super().parse_args(ctx, with_imports_first(args))


class ClosedPipe(Exception):
    """The reader of our output has gone. Typer would end a BrokenPipeError with exit code 1."""


def _require_working_folder() -> None:
    """Without one, torch's math library ends the process as it is loaded."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise MachineError("the working folder no longer exists", hint="cd to another one") from None


@contextlib.contextmanager
def _own_closed_pipe() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ClosedPipe from None


def _build(name: str, import_option: Any) -> Any:
    """Build the click command, or the group of commands, of the registered command `name`.

    Args:
        import_option: ``--import``, which is parsed before the command but shown in every command's help.
    """
    entry = commands.get(name)
    parent = typer.Typer(add_completion=False, rich_markup_mode=None)
    parent.callback()(lambda: None)  # without a callback, Typer would turn a single command into the app itself
    if "app" in entry.meta:
        for inner in entry.meta["app"].registered_commands:
            inner.callback = with_addresses(inner.callback)
        parent.add_typer(entry.meta["app"], name=name, cls=Group)
    else:
        died, function = entry.meta.get("died"), with_addresses(entry.function)
        if died is not None:
            function = supervised.supervised(function, died, entry.meta.get("supervised_when"))
        parent.command(name, cls=Command)(function)
    built = typer.main.get_group(parent).commands[name]
    shown = copy.copy(import_option)
    shown.expose_value, shown.is_eager, shown.callback = False, False, None
    for command in (built, *getattr(built, "commands", {}).values()):
        command.params.append(shown)
        for option in command.params:
            _say_default(option)
    return built


def _say_default(option: Any) -> None:
    """Have the help say so where an option that takes a value has no default."""
    takes_value = option.param_type_name == "option" and not option.is_flag and not option.required
    if takes_value and option.default in (None, (), []) and "[default: " not in (option.help or ""):
        option.help = f"{option.help or ''}  [default: none]"


def with_imports_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with each ``--import FILE.py`` before the command's name; those after ``--`` stay in place."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    rest, imports, remaining = list[str](), list[str](), iter(arguments[:end])
    for argument in remaining:
        if argument == "--import":
            pair = [argument, *islice(remaining, 1)]
            (imports if len(pair) == 2 else rest).extend(pair)  # click rejects --import without a file
        else:
            (imports if argument.startswith("--import=") else rest).append(argument)
    name = next((i for i, argument in enumerate(rest) if not argument.startswith("-")), 0)
    return [*rest[:name], *imports, *rest[name:], *arguments[end:]]


app = typer.Typer(
    cls=Registered,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # markup would swallow "[default: ...]" in help texts
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help="Train, fine-tune, evaluate, compress, export and serve models.",
    epilog="Start with: bigmodel train resnet18 --data digits",
)


def _version(requested: bool) -> None:
    if requested:
        console.say(f"bigmodel {bigmodel_cli.__version__}")
        raise typer.Exit()


def _enable_debug(requested: bool) -> None:
    if requested:
        os.environ["BIGMODEL_DEBUG"] = "1"


def _run_imports(context: typer.Context, files: list[Path] | None) -> None:
    """Run each file once and print a note. In a job of several processes, only the first prints it."""
    from bigmodel_cli.core.plugins import import_file

    prints = "BIGMODEL_LAUNCHER" not in os.environ and os.environ.get("RANK", "0") == "0"
    for file in files or ():
        if not context.resilient_parsing:  # shell completion must not run the files
            import_file(file, console.note if prints else lambda line: None)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", callback=_enable_debug, is_eager=True, help="Show tracebacks.")
    ] = False,
    imports: Annotated[
        list[Path] | None,
        typer.Option("--import", metavar="FILE.py", callback=_run_imports, is_eager=True, help=IMPORT),
    ] = None,
) -> None: ...


def main() -> None:
    """Run the command line and exit with its code."""
    gc.set_threshold(100_000)  # saves 0.2 s of garbage collection while torch is imported; placement resets it
    isolate_children()
    hear_of_children()
    supervised.OWN_PROCESS = True
    atexit.register(_exit_fast)  # registered first, so it runs last, after all other exit handlers
    try:
        _run()
        _exit_codes.append(0)
    except SystemExit as end:
        _exit_codes.append(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


_exit_codes: list[int] = []


def _exit_fast() -> None:
    """Exit after threads and exit handlers are done, without unloading torch's modules, which takes 0.4 s."""
    with contextlib.suppress(OSError):  # `_run` has flushed stdout; what a thread wrote since then is lost
        sys.stdout.flush()
        sys.stderr.flush()
    if _exit_codes:
        os._exit(_exit_codes[0])


def _run() -> None:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # a script's background job ignores it
        signal.signal(signal.SIGINT, _interrupt)
    try:
        code = app(standalone_mode=False)
        console.flush()
    except (ClosedPipe, BrokenPipeError):  # the reader of the pipe has exited, as in `| head`
        console.discard_stdout()
        _exit(128 + SIGPIPE)
    except NoArgsIsHelpError as help_text:
        console.help_page(help_text.format_message())
        _exit(2)
    except (Exception, InterruptedRun) as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C would end this one's line in a traceback
        _reraise_in_debug()
        _fail(_as_bigmodel_error(error))
    if code:
        _exit(code)


def _as_bigmodel_error(error: Exception | InterruptedRun) -> CommandEnd:
    known = as_usage_error(error) or as_machine_error(error)
    if known is not None:
        return known
    hint = "; ".join([*getattr(error, "__notes__", ()), "bigmodel --debug COMMAND shows the traceback"])
    return BigmodelError(f"a bug in bigmodel: {type(error).__name__}: {error}", hint=hint)


def _fail(error: CommandEnd) -> NoReturn:
    console.error(error)
    try:
        console.flush()
    except (OSError, MachineError):
        console.discard_stdout()
    _exit(error.exit_code)


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise InterruptedRun(signum, "interrupted")


def _reraise_in_debug() -> None:
    if os.environ.get("BIGMODEL_DEBUG"):
        raise


def _exit(code: int) -> NoReturn:
    raise SystemExit(code)
