"""``--nproc``, ``--nnodes``, ``--rdzv``: run the same command in several processes, under torch's elastic agent."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import InputError


@dataclass(frozen=True)
class Launch:
    """The launch flags."""

    nproc: str | None = None
    nnodes: str | None = None
    rdzv: str | None = None
    max_restarts: int = 0

    @property
    def requested(self) -> bool:
        """Whether to start other processes. Those have the same flags, and do not start any."""
        return "TORCHELASTIC_RUN_ID" not in os.environ and (self.nproc, self.nnodes, self.rdzv) != (None, None, None)

    def hosts(self) -> tuple[int, int]:
        """The minimum and maximum number of hosts.

        Raises:
            InputError: ``--nnodes`` is not of the form N or A:B.
        """
        fewest, _, most = (self.nnodes or "1").partition(":")
        if not fewest.isdigit() or not (most or fewest).isdigit() or not 1 <= int(fewest) <= int(most or fewest):
            raise InputError(f"--nnodes {self.nnodes}", "expected N or A:B with 1 <= A <= B", "--nnodes 2:4")
        return int(fewest), int(most or fewest)

    def run(self, out: Path | None, stem: str, *, resume: bool, overwrite: bool, dry_run: bool) -> None:
        """Start the processes and exit with their exit code.

        Raises:
            InputError: the flags contradict each other, or the run folder is in use.
        """
        from bigmodel_cli.engine.distributed.launcher import LaunchPlan, process_count, start
        from bigmodel_cli.engine.session.run_folder import RunFolder

        fewest, most = self.hosts()
        if dry_run:
            raise InputError("--dry-run runs in one process", hint="remove --nproc, --nnodes and --rdzv")
        if most > 1 and self.rdzv is None:
            raise InputError("--nnodes without --rdzv", "expected the address of one host", "--rdzv HOST:29500")
        if most > 1 and out is None:
            raise InputError("--nnodes without --out", "expected a folder that all hosts share", "--out runs/big")
        made = None
        if most == 1:
            # Made here, so that its name is the same after a restart.
            folder = RunFolder(out, stem, resume=resume, overwrite=overwrite)
            made = folder.make() if out is None else None
        arguments = [*sys.argv[1:], *(["--out", str(made)] if made else [])]
        try:
            plan = LaunchPlan(process_count(self.nproc), fewest, most, self.rdzv, self.max_restarts)
            code = start(plan, arguments, console.error)
        finally:
            if made is not None and not any(made.iterdir()):
                made.rmdir()
        raise typer.Exit(code)
