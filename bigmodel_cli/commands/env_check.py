"""``bigmodel env-check``: is this machine ready, and if not, what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.core.errors import InputError, nearest

if TYPE_CHECKING:
    from bigmodel_cli.engine.machine import Check

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}


def env_check(
    require: Annotated[
        str | None, typer.Option("--require", help="Checks that must pass, e.g. cuda,bf16,onnx.")
    ] = None,
    data_dir: opt.DataDir = None,
    json: opt.Json = False,
) -> None:
    """Check this machine: a line each with pass, warn or fail and what to do. Exit code 0, or 3 on a fail.

    Examples:

        bigmodel env-check

        bigmodel env-check --json --require bf16,onnx
    """
    from bigmodel_cli.engine.machine import checks

    root = Path(data_dir or os.environ.get("BIGMODEL_DATA") or "~/.cache/bigmodel").expanduser()
    found = _required(checks(root, Path.cwd()), require)
    failed = [c for c in found if c.status == "fail"]
    if json:
        status = "fail" if failed else "pass"
        console.print_json({"status": status, "checks": [c.to_dict() for c in found]})
    else:
        table = console.table(None, ("", "check", "found", "what to do"), ())
        for c in found:
            table.add_row(Text(c.status, style=STYLES[c.status]), c.name, Text(c.value), Text(c.fix or ""))
        console.show(table)
        console.say(f"{len(failed)} failed" if failed else "ready")
    if failed:
        raise typer.Exit(3)


def _required(found: list[Check], require: str | None) -> list[Check]:
    """`found`, with what is required and did not pass turned into a failure."""
    from dataclasses import replace

    wanted = {name.strip() for name in (require or "").split(",") if name.strip()}
    unknown = wanted - {c.name for c in found}
    if unknown:
        name = sorted(unknown)[0]
        raise InputError(f"--require {name}: no such check", nearest(name, [c.name for c in found]))
    return [replace(c, status="fail") if c.name in wanted and c.status != "pass" else c for c in found]
