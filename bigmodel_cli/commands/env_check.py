"""``bigmodel env-check``: whether this machine is ready, and what to do if it is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.core.errors import InputError, nearest, printable
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from bigmodel_cli.engine.device.check import Check

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}
NAMES = ("python", "cpu", "torch", "torchvision", "cuda", "driver", "cudnn", "gpu", "bf16", "compile", "disk",
         "memory", "data", "network")  # fmt: skip
"""What --require accepts, besides the extras and their packages."""


@commands.register("env-check", order=150)
def env_check(
    require: Annotated[
        str | None, typer.Option("--require", metavar="NAMES", help="Checks that must pass, such as cuda,bf16,onnx.")
    ] = None,
    data_dir: opt.DataDir = None,
    json: opt.Json = False,
) -> None:
    """Check this machine: each check passes, warns or fails, and says what to do.

    Exit code 0, or 3 if a check fails. Takes up to ten seconds, or two minutes with --require compile.

    Examples:

        bigmodel env-check

        bigmodel env-check --json --require bf16,onnx
    """
    from bigmodel_cli.core.recipe import data_root
    from bigmodel_cli.data.presence import present_in
    from bigmodel_cli.engine.device.env_check import COMPILE_LIMIT, COMPILE_REQUIRED_LIMIT, run_checks

    wanted = wanted_names(require)
    root = data_root(data_dir)
    patience = COMPILE_REQUIRED_LIMIT if "compile" in wanted else COMPILE_LIMIT
    found = required(run_checks(root, present_in(root), Path.cwd(), patience), wanted)
    failed = [c for c in found if c.status == "fail"]
    if json:
        status = "fail" if failed else "pass"
        console.print_json({"status": status, "checks": [c.to_dict() for c in found]})
    else:
        table = console.table(None, ("", "check", "found", "what to do"), ())
        for c in found:
            status_cell = Text(c.status, style=STYLES[c.status])
            table.add_row(status_cell, c.name, Text(printable(c.value)), Text(printable(c.fix or "")))
        console.show(table)
        console.say(f"{len(failed)} failed: {', '.join(c.name for c in failed)}" if failed else "ready")
    if failed:
        raise typer.Exit(3)


def wanted_names(require: str | None) -> list[str]:
    """The names in ``--require``, in order, before any check is run.

    Raises:
        InputError: there is no check of that name.
    """
    from bigmodel_cli.engine.device.probes import extras

    wanted = [name.strip() for name in (require or "").split(",") if name.strip()]
    known = {*NAMES, *extras(), *(package for packages in extras().values() for package in packages)}
    for name in wanted:
        if name not in known:
            raise InputError(f"--require {name}: no such check", nearest(name, known), hint="bigmodel env-check")
    return wanted


def required(found: list[Check], wanted: list[str]) -> list[Check]:
    """`found`, where every required check that did not pass is a failure.

    ``gpu`` means every GPU, ``network`` every mirror, ``onnx`` everything the extra installs.
    A required check that does not apply to this machine (cuDNN without CUDA) is added as a failure.
    """
    from dataclasses import replace

    from bigmodel_cli.engine.device.check import Check
    from bigmodel_cli.engine.device.probes import extras

    names = {member for name in wanted for member in extras().get(name, (name,))}
    family = [c.name.split()[0] for c in found]
    found = [
        replace(c, status="fail") if f in names and c.status != "pass" else c
        for c, f in zip(found, family, strict=True)
    ]
    absent = sorted(names - set(family))
    return [*found, *(Check(name, "fail", "not on this machine", "see the cuda check") for name in absent)]
