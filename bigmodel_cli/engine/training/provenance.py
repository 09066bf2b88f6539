"""Where a run comes from, beside its recipe: the state of the working directory and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from typing import Any

from bigmodel_cli.core.cpu_count import available_cores
from bigmodel_cli.engine.device.hardware import cpu_info

GIT_SECONDS = 5


def provenance() -> dict[str, Any]:
    """Plain values for a checkpoint: {git: {commit, dirty} or None, machine: {...}}. No name of a host or a person."""
    return {
        "git": git_state(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": cpu_info()[0],
            "cores": available_cores(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        },
    }


def git_state() -> dict[str, Any] | None:
    """The commit of the working directory, and whether tracked files differ from it; None where there is no git."""
    commit = _git("rev-parse", "--verify", "HEAD")
    # What a repository's own settings could start on a status is switched off.
    changes = _git("-c", "core.fsmonitor=false", "status", "--porcelain", "--untracked-files=no", "--ignore-submodules")
    if commit is None or changes is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def _git(*arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=GIT_SECONDS, env=environment, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
