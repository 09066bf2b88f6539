"""A process that has torch loaded and forks the real command: a start costs a tenth of a second instead of four.

The child is the whole command, `bigmodel_cli.cli.main()` on its own arguments in its own
process group, ended the way Python ends a process. What a test breaks on purpose is named
by a key of SABOTAGE, and is broken in that child alone.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from conftest import environment


def _in_place() -> None:
    import torch

    from bigmodel_cli.engine.checkpoint import checkpoint

    checkpoint.save = lambda path, state, abandoned=None: torch.save(state, path)  # type: ignore[assignment]


def _deaf() -> None:
    from bigmodel_cli.engine.session.signals import StopFlag

    StopFlag._handle = lambda self, signum, frame: None  # type: ignore[method-assign]


def _no_lock() -> None:
    import fcntl

    fcntl.flock = lambda file, how: None  # type: ignore[assignment]


class Forked:
    """What the agent takes for a ``Popen``: a fork that runs the command, four seconds sooner than a fresh Python."""

    def __init__(self, args: Any, env: dict[str, str], **options: Any) -> None:
        self.args, self.returncode = args, None
        self.pid = os.fork()
        if self.pid == 0:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            from bigmodel_cli.engine.device.ranks import die_with_launcher

            os.setsid()
            os.environ.clear()
            os.environ.update(env)
            sys.argv = ["bigmodel", *args[3:]]
            die_with_launcher()
            _run_and_leave()

    def poll(self) -> int | None:
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode


def _forked_examples() -> None:
    """``example.py`` of an export that needs torch runs in a fork too; tests/export runs it in a Python of its own."""
    from bigmodel_cli.export import example

    fresh = example._run_isolated

    def run_isolated(script: Path, arguments: list[str], place: Path, allow_torch: bool) -> Any:
        if not allow_torch:
            return fresh(script, arguments, place, allow_torch)
        files = [place / "stdout", place / "stderr"]
        given = ["-c", str(script.resolve()), *arguments]
        sys.stdout.flush()  # else both processes write what is buffered
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            for number, file in enumerate(files, 1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.chdir(place)
            sys.argv = given
            _leave_after(lambda: exec(example.program(allow_torch), {}))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out, err = (file.read_text(encoding="utf-8") for file in files)
        return subprocess.CompletedProcess([str(script), *arguments], code, out, err)

    example._run_isolated = run_isolated


def _brief_timing() -> None:
    """Of what is compressed: no test asks how fast it is."""
    from bigmodel_cli.compress import trial

    trial.SECONDS = 0.01


def _forked_ranks() -> None:
    """Ranks that the launcher starts are forks too."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    SubprocessHandler._popen = lambda self, args, env: Forked(args, env)  # type: ignore[assignment, return-value]


def _at_step(wanted: int, act: Callable[[], None]) -> None:
    """Have rank 1 `act` before it trains step `wanted`."""
    from bigmodel_cli.engine.training import loop

    real = loop.train_step

    def train_step(run: Any, raw: Any) -> Any:
        if os.environ.get("RANK") == "1" and run.progress.step == wanted - 1:
            act()
        return real(run, raw)

    loop.train_step = train_step


def _rank_1_fails() -> None:
    from bigmodel_cli.core.errors import MachineError

    def fail() -> None:
        raise MachineError("the sky fell", hint="look up")

    _at_step(3, fail)


def _rank_1_hangs() -> None:
    _at_step(3, lambda: time.sleep(1000))


def _rank_1_is_slow() -> None:
    """In gathering its samples: 80 ms a batch: a busy machine delays the other rank, too."""
    from bigmodel_cli.data.image.arrays import ImageArrays

    real = ImageArrays.gather

    def gather(self: Any, indices: Any) -> Any:
        if os.environ.get("RANK") == "1":
            time.sleep(0.08)
        return real(self, indices)

    ImageArrays.gather = gather  # type: ignore[method-assign]


def _rank_1_is_killed_once() -> None:
    """In the first start of the ranks alone."""

    def die() -> None:
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    _at_step(16, die)


def _bug() -> None:
    from bigmodel_cli.engine.training import assemble

    def fit(run: Any, after_step: Any) -> Any:
        return 1 / 0

    assemble.fit = fit


def _no_onnx() -> None:
    for module in ("onnx", "onnxruntime", "onnxscript"):
        sys.modules[module] = None  # type: ignore[assignment]


def _openvino_crashes() -> None:
    """As a fault in native code does: no exception, a signal."""
    from bigmodel_cli.export import openvino

    openvino.import_openvino = lambda: os.kill(os.getpid(), signal.SIGSEGV)  # type: ignore[assignment]


def _openvino_crashes_here() -> None:
    """In the command's own process, as if none had been made for it."""
    from bigmodel_cli.commands.isolation import supervised

    supervised._fork = lambda: 0
    _openvino_crashes()


def _openvino_crashes_unheard() -> None:
    """In a process that was started with SIGCHLD ignored, to which the system tells no child's end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _openvino_crashes()


def _openvino_hangs() -> None:
    """As a lock in native code does: no signal handler of Python's runs."""
    from bigmodel_cli.export import openvino

    def wait() -> None:
        import ctypes

        ctypes.PyDLL(None).pause()  # with Python's own lock held
        raise AssertionError("a signal that is handled has ended the wait")

    openvino.import_openvino = wait  # type: ignore[assignment]


SABOTAGE = {
    "openvino-hangs": _openvino_hangs,
    "openvino-crashes": _openvino_crashes,
    "openvino-crashes-here": _openvino_crashes_here,
    "openvino-crashes-unheard": _openvino_crashes_unheard,
    "bug": _bug,
    "no-onnx": _no_onnx,
    "rank-1-fails": _rank_1_fails,
    "rank-1-hangs": _rank_1_hangs,
    "rank-1-is-slow": _rank_1_is_slow,
    "rank-1-is-killed-once": _rank_1_is_killed_once,
    "in-place": _in_place,
    "deaf": _deaf,
    "no-lock": _no_lock,
}


@dataclass
class Child:
    """A forked command; `out` and `err` are the files that it writes to."""

    nursery: Nursery
    pid: int
    out: Path
    err: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send `number` to its process group, as a scheduler or Ctrl-C does."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # it has no group of its own yet, or has ended in this moment
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def running(self) -> bool:
        """Whether it has not ended; a zombie has."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state != "Z"

    def wait(self) -> int:
        """Its exit code, negative for a signal, as ``subprocess`` gives it."""
        return int(self.nursery.ask({"wait": self.pid}))

    @property
    def error(self) -> str:
        return self.err.read_text()


@functools.cache
def _server() -> subprocess.Popen[str]:
    """One a test session: its start is the slow part. It ends when its input does."""
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
    )


class Nursery:
    """Starts commands in `folder`; those that still run when it is left are killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.logs, self.process = folder, folder.with_name(f"{folder.name}-logs"), _server()
        self.children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for child in self.children:
            if child.running():
                child.kill()

    def ask(self, request: dict[str, Any]) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except BaseException:  # a test's time is up: the answer would be taken for that of the next request
            self.process.kill()
            _server.cache_clear()
            raise

    def start(
        self,
        *arguments: Any,
        sabotage: str | None = None,
        largest_file: int | None = None,
        variables: dict[str, Any] | None = None,
        host: str | None = None,
    ) -> Child:
        """The command with `arguments` and `variables`; no file of it grows beyond `largest_file` bytes.

        `host` is the network namespace that it runs in.
        """
        self.logs.mkdir(exist_ok=True)
        out, err = (self.logs / f"{len(self.children)}.{kind}" for kind in ("out", "err"))
        for file in (out, err):
            file.touch()
        argv = ["bigmodel", *map(str, arguments)]
        request: dict[str, Any] = {"argv": argv, "cwd": str(self.folder), "out": str(out), "err": str(err)}
        request["env"] = {**environment(), **{k: str(v) for k, v in (variables or {}).items()}}
        pid = self.ask({**request, "sabotage": sabotage, "largest_file": largest_file, "host": host})
        self.children.append(Child(self, pid, out, err))
        return self.children[-1]

    def run(self, *arguments: Any, **options: Any) -> tuple[int, Child]:
        child = self.start(*arguments, **options)
        return child.wait(), child


MANY = 5
"""Commands after which it pays to have loaded more: eight seconds, which one test alone does not wait for."""
SLOW_TO_IMPORT = (
    "PIL.Image", "torchvision.transforms.functional", "torchcodec.decoders", "pillow_heif", "scipy.stats",
    "sklearn.model_selection", "sklearn.linear_model", "matplotlib.figure", "torch.export._trace",
    "torch.onnx._internal.exporter", "torch._inductor.ir", "sympy.tensor.tensor", "onnxscript.function_libs.torch_lib",
    "onnxscript._internal.main", "opacus.accountants", "timm",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("bert", "gpt2", "llama", "qwen2", "t5")),
)  # fmt: skip
"""Not those that start threads, which a fork lacks, as onnxruntime does."""


def _load_more() -> None:
    """What commands import later, each of them again: slow libraries, as far as they are there, and this package."""
    import importlib
    import logging
    import pkgutil

    import bigmodel_cli

    logging.disable(logging.WARNING)  # torchao's import has torch warn
    modules = [module.name for module in pkgutil.walk_packages(bigmodel_cli.__path__, "bigmodel_cli.")]
    for name in (*SLOW_TO_IMPORT, *(name for name in modules if not name.endswith("__main__"))):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        _export_once()
    logging.disable(logging.NOTSET)


def _export_once() -> None:
    """What an export to ONNX makes at its first model is made."""
    import torch
    from onnx_operators import read_once

    read_once()
    torch.onnx.export(torch.nn.Linear(1, 1).eval(), (torch.zeros(1, 1),), dynamo=True, verbose=False)


def _serve() -> None:
    import torch

    import bigmodel_cli.cli
    import bigmodel_cli.engine.distributed.launcher
    import bigmodel_cli.engine.session.session
    import bigmodel_cli.insight.report  # noqa: F401
    from bigmodel_cli.core import registry

    registry.data.get("digits")(Path()).load["train"]()  # sklearn is slow to import too
    weight = torch.zeros(1, requires_grad=True)
    torch.optim.AdamW([weight])  # and so is torch's compiler, which every optimizer imports
    for components in vars(registry).values():
        if isinstance(components, registry.Registry):
            components.found  # noqa: B018  # reads the source of a whole package
    gc.freeze()  # else each child walks, and so copies, the million objects that were there before it
    started = 0
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            started += 1
            if started == MANY:
                _load_more()
                gc.freeze()
            answer = os.fork()
            if answer == 0:
                _child(request)
        print(json.dumps(answer), flush=True)  # noqa: T201
    os._exit(0)  # without triton's list of what it leaks


def _forget_the_hub() -> None:
    """Its address and its cache are read from the environment once, as it is imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("huggingface_hub", "transformers", "timm")]:
        del sys.modules[name]


def _child(request: dict[str, Any]) -> None:
    os.setsid()
    if request["host"]:
        import ctypes

        with Path("/var/run/netns", request["host"]).open() as space:
            assert ctypes.CDLL(None).setns(space.fileno(), 0x40000000) == 0  # CLONE_NEWNET, linux/sched.h
    os.chdir(request["cwd"])
    if {k: v for k, v in os.environ.items() if k.startswith("HF_")} != {
        k: v for k, v in request["env"].items() if k.startswith("HF_")
    }:
        _forget_the_hub()
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None  # TMPDIR is read again
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if "--nproc" in request["argv"]:
        _forked_ranks()
    if "export" in request["argv"]:
        _forked_examples()
    if "compress" in request["argv"]:
        _brief_timing()
    if request["sabotage"]:
        SABOTAGE[request["sabotage"]]()
    if request["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
    sys.argv = request["argv"]
    _run_and_leave()


def _run_and_leave() -> None:
    def command() -> None:
        from bigmodel_cli.cli import main

        main()

    _leave_after(command)


def _leave_after(program: Callable[[], object]) -> None:
    """`program`, and the end that Python would give it."""
    code = 0
    try:
        program()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    threading._shutdown()  # type: ignore[attr-defined]  # as at the end of Python: wait for threads
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
