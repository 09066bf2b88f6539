"""What every test may use: the real data, and the real command in a process of its own."""

from __future__ import annotations

import functools
import gc
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., subprocess.CompletedProcess[str]]

# A shell's job in the background ignores the first, one under nohup the second: children would inherit that.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadscope``, modules whose tests share a fixture run in one process; others where one is free.

    Then that fixture is made once, and no process is left with a long module at the end.
    """
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return module if _shares_a_fixture(config.rootpath / module) else nodeid

    return ByModule(config, log)


@functools.cache
def _shares_a_fixture(module: Path) -> bool:
    return bool(re.search(r'scope="module"|^from services import', module.read_text(), re.MULTILINE))


def pytest_configure() -> None:
    gc.disable()  # while modules are imported, which leaves little to collect and much to walk through


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()  # torch and the tests themselves stay: a collection need not walk through them


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    import figures

    if report.failed and figures.SOAK and "PYTEST_XDIST_WORKER" not in os.environ:
        figures.withdraw(report.nodeid)


def pytest_runtest_setup() -> None:
    if "torch.onnx._internal.exporter._registration" in sys.modules:  # a test has exported: more will
        from onnx_operators import read_once

        read_once()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets, or a skip that says where it is looked for."""
    for folder in (os.environ.get("BIGMODEL_DATA"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / "mnist").is_dir():
            return Path(folder)
    pytest.skip("no real data: set BIGMODEL_DATA to a folder with mnist/ in it")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests keep decoded images in a folder of their own, which the commands they run inherit."""
    os.environ["BIGMODEL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def environment() -> dict[str, str]:
    plain = {k: v for k, v in os.environ.items() if k != "BIGMODEL_DATA"}
    return {**plain, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


@pytest.fixture
def run_cli(tmp_path: Path) -> Iterator[Run]:
    """``bigmodel ...`` in ``tmp_path``; gives the finished process.

    It is forked from one that has torch loaded (see ``nursery.py``), which saves four seconds a
    command; with `fresh`, or with options for ``subprocess.run``, Python is started anew.
    `variables` are added to its environment; `sabotage` breaks something in it (see there).
    """
    from nursery import Nursery

    with Nursery(tmp_path) as nursery:

        def run(
            *arguments: Any,
            fresh: bool = False,
            timeout: float = 200,
            variables: dict[str, Any] | None = None,
            sabotage: str | None = None,
            **options: Any,
        ) -> subprocess.CompletedProcess[str]:
            if not fresh and not options:
                code, child = nursery.run(*arguments, variables=variables, sabotage=sabotage)
                return subprocess.CompletedProcess(arguments, code, child.out.read_text(), child.error)
            command = [sys.executable, "-m", "bigmodel_cli", *map(str, arguments)]
            options = {"cwd": tmp_path, "env": {**environment(), **(variables or {})}, **options}
            return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)

        yield run


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test of parallel/ in a process of its own where a fork of this one cannot compute gradients.

    Its ranks are forks. Once torch's own threads for gradients run, as another test may have had it, forks refuse.
    """
    if pyfuncitem.path.parent.name != "parallel" or forks_compute_gradients():
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "timeout", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return True


def forks_compute_gradients() -> bool:
    """Whether a fork of this process can run a backward pass."""
    import torch

    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.ones(1, requires_grad=True).sum().backward()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0
