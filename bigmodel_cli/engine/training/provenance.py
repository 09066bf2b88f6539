"""Record where a run was made: the git state of the working directory, and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from typing import Any

from bigmodel_cli.core.processes.cpu_count import available_cores
from bigmodel_cli.core.processes.host_memory import memory_total
from bigmodel_cli.engine.device.hardware import cpu_info

GIT_SECONDS = 5


def provenance() -> dict[str, Any]:
    """Return plain values for a checkpoint: {git: {commit, dirty} or None, machine: {...}}.

    They contain no host name and no user name.
    """
    return {
        "git": git_state(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": cpu_info()[0],
            "cores": available_cores(),
            "memory_gb": round(memory_total() / 1e9, 1),
        },
    }


def git_state() -> dict[str, Any] | None:
    """Return the commit of the working directory and whether tracked files differ from it; None outside git."""
    commit = _git("rev-parse", "--verify", "HEAD")
    # A repository's settings can run a program on `git status`; this disables it.
    changes = _git("-c", "core.fsmonitor=false", "status", "--porcelain", "--untracked-files=no", "--ignore-submodules")
    if commit is None or changes is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def _git(*arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        result = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=GIT_SECONDS, env=environment, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None
