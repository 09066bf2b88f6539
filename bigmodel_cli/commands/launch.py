"""``--nproc``, ``--nnodes``, ``--rdzv``: the same command again in several processes, under torch's elastic agent."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.core.errors import InputError


@dataclass(frozen=True)
class Launch:
    """What the launch flags ask for."""

    nproc: str | None = None
    nnodes: str | None = None
    rdzv: str | None = None
    max_restarts: int = 0

    @property
    def wanted(self) -> bool:
        """Whether this process is to start others; a process that was started so has the same flags."""
        return "TORCHELASTIC_RUN_ID" not in os.environ and (self.nproc, self.nnodes, self.rdzv) != (None, None, None)

    def hosts(self) -> tuple[int, int]:
        """The least and the most hosts.

        Raises:
            InputError: not of the form N or A:B.
        """
        least, _, most = (self.nnodes or "1").partition(":")
        if not least.isdigit() or not (most or least).isdigit() or not 1 <= int(least) <= int(most or least):
            raise InputError(f"--nnodes {self.nnodes}", "expected N or A:B with 1 <= A <= B", "--nnodes 2:4")
        return int(least), int(most or least)

    def run(self, out: Path | None, stem: str, *, resume: bool, overwrite: bool, dry_run: bool) -> None:
        """Start the processes, and end as they do.

        Raises:
            InputError: the flags do not fit together, or the folder is taken.
        """
        from bigmodel_cli.engine.distributed.launcher import LaunchPlan, process_count, start
        from bigmodel_cli.engine.training.run_folder import RunFolder

        least, most = self.hosts()
        if dry_run:
            raise InputError("--dry-run runs in one process", hint="without --nproc, --nnodes and --rdzv")
        if most > 1 and self.rdzv is None:
            raise InputError("--nnodes without --rdzv", "expected where the hosts meet", "--rdzv HOST:29500")
        if most > 1 and out is None:
            raise InputError("--nnodes without --out", "expected a folder that every host sees", "--out runs/big")
        made = None
        if most == 1:
            # Made here, since its name must be the same when the processes start again.
            folder = RunFolder(out, stem, resume=resume, overwrite=overwrite)
            made = folder.make() if out is None else None
        arguments = [*sys.argv[1:], *(["--out", str(made)] if made else [])]
        try:
            plan = LaunchPlan(process_count(self.nproc), least, most, self.rdzv, self.max_restarts)
            code = start(plan, arguments, console.error)
        finally:
            if made is not None and not any(made.iterdir()):
                made.rmdir()
        raise typer.Exit(code)
