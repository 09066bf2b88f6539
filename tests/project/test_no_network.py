"""Importing any part of the package reaches for no network, as does listing what is registered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment

WATCHED = """
import importlib, pkgutil, sys

def hook(event, arguments):
    if event.partition(".")[0] in ("socket", "urllib", "http", "ftplib") and event != "socket.gethostname":
        print(event, *arguments[1:2])

sys.addaudithook(hook)
"""
EVERYTHING = """
import bigmodel_cli
for found in pkgutil.walk_packages(bigmodel_cli.__path__, "bigmodel_cli."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
from bigmodel_cli.core import registry
for kind in (registry.models, registry.data, registry.methods, registry.exports, registry.commands):
    for name in kind.names():
        kind.get(name)
print(len(sys.modules), "modules", file=sys.stderr)
"""
# A negative control: nothing listens there, and the attempt is what counts.
REACHES = """
import socket
try:
    socket.create_connection(("127.0.0.1", 9), 1).close()
except OSError:
    pass
"""


def _watched(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", WATCHED + code]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)


def test_imports_reach_for_no_network() -> None:
    done = _watched(EVERYTHING)
    assert done.returncode == 0, done.stderr
    assert not done.stdout and "modules" in done.stderr


def test_a_connection_is_noticed() -> None:
    assert "socket.connect" in _watched(REACHES).stdout


def test_onnxruntime_prepares_no_report(tmp_path: Path) -> None:
    """Its native code opens connections that no hook of Python sees; what it always writes for them is a session."""
    pytest.importorskip("onnxruntime")
    plain = {k: v for k, v in environment().items() if k != "ORT_DISABLE_TELEMETRY"}
    written = {}
    for name in ("sys", "bigmodel_cli"):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-P", "-c", f"import {name}, onnxruntime"]
        subprocess.run(command, env={**plain, "TMPDIR": str(tmp_path / name)}, check=True, timeout=200)
        written[name] = [path.name for path in (tmp_path / name).iterdir()]
    assert written["bigmodel_cli"] == []
    if not written["sys"]:  # the control
        pytest.skip("this onnxruntime reports nothing")
