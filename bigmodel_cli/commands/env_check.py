"""``bigmodel env-check``: whether this machine is ready, and what to do if it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.pages import require_place
from bigmodel_cli.commands.environment.reports import github_lines, write_junit
from bigmodel_cli.commands.environment.requirements import read_requirements, required
from bigmodel_cli.core.registry import commands
from bigmodel_cli.engine.device.check import Check

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}


@commands.register("env-check", order=150)
def env_check(
    require: Annotated[
        str | None,
        typer.Option("--require", metavar="LIST", help="What must hold: torch>=2.11,memory>=16GB,gpu>=1,bf16,onnx."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Also write the checks as JUnit XML.")
    ] = None,
    github: Annotated[bool, typer.Option("--annotations", help="Also print GitHub annotations, on stderr.")] = False,
    data_dir: opt.DataDir = None,
    json: opt.Json = False,
) -> None:
    """Check this machine: each check passes, warns or fails, and says what to do.

    Exit code 0, or 3 if a check fails. Takes up to ten seconds, or two minutes with --require compile.

    Examples:

        bigmodel env-check

        bigmodel env-check --json --require bf16,onnx

        bigmodel env-check --require 'torch>=2.11,disk>=1GB' --junit out.xml
    """
    from bigmodel_cli.core.recipe import data_root
    from bigmodel_cli.data.presence import present_in
    from bigmodel_cli.engine.device import env_check as checks

    require_place(junit)
    wanted = read_requirements(require)
    root = data_root(data_dir)
    patience = checks.COMPILE_REQUIRED_LIMIT if "compile" in {r.name for r in wanted} else checks.COMPILE_LIMIT
    probes = checks.PROBE_REQUIRED_LIMIT if wanted else checks.PROBE_LIMIT
    found = required(checks.run_checks(root, present_in(root), Path.cwd(), patience, probes), wanted)
    failed = [c for c in found if c.status == "fail"]
    if junit is not None:
        write_junit(junit, found)
    if github:
        for line in github_lines(found):
            console.raw_note(line)
    _show(found, failed, json)
    if failed:
        raise typer.Exit(3)


def _show(found: list[Check], failed: list[Check], json: bool) -> None:
    if json:
        status = "fail" if failed else "pass"
        console.print_json({"status": status, "checks": [c.to_dict() for c in found]})
        return
    table = console.table(None, ("", "check", "found", "what to do"), ())
    for c in found:
        status_cell = Text(c.status, style=STYLES[c.status])
        table.add_row(status_cell, c.name, console.text(c.value), console.text(c.fix or ""))
    console.show(table)
    console.say(f"{len(failed)} failed: {', '.join(c.name for c in failed)}" if failed else "ready")
