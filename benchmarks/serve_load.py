"""`bigmodel serve` under load, on loopback: 10,000 real images, 1,000 malformed uploads; rewrites RESULTS-serve.md.

A network is trained for a few steps on MNIST (BIGMODEL_DATA or ../shared/data), exported and served; the images are
those of its test split, each sent as a PNG, so that a reply that was given to the wrong request would cost accuracy.
The client is this process, on the same machine.

python benchmarks/serve_load.py [--model cnn] [--requests 10000] [--at-once 16] [--malformed 1000] [--export FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import io
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bigmodel_cli.core.processes.cpu_count import available_cores

HERE = Path(__file__).resolve().parent
BIGMODEL = (sys.executable, "-m", "bigmodel_cli")
LIMITS = ("--max-mb", "1", "--max-batch", "8", "--max-pixels", "2000000")
"""What the malformed uploads are beyond."""
TOO_LONG = 600  # seconds; a load that takes longer is an error
STEPS = 10  # of memory, over the requests


@dataclass
class Load:
    """What a load met. `seconds`: of each request. `memory`: MB of the service, after each tenth of them."""

    seconds: list[float] = field(default_factory=list)
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    broken: int = 0
    right: int = 0
    memory: list[float] = field(default_factory=list)
    wall: float = 0.0


class Connection:
    """One keep-alive connection; it is opened again where the service closed it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        head = "\r\n".join([*lines, *(f"{k}: {v}" for k, v in headers.items())]) + "\r\n\r\n"
        writer.write(head.encode("latin-1") + body)
        with contextlib.suppress(ConnectionError):  # the reply may have come before all was read
            await writer.drain()
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(answer.partition("content-length: ")[2].split("\r\n")[0])
        content = await reader.readexactly(length)
        if "connection: close" in answer:
            self.close()
        return int(answer.split()[1]), content

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
        self.streams = None


async def load(port: int, pid: int, work: Sequence[tuple[bytes, dict[str, str], str]], at_once: int) -> Load:
    """Send all of `work` (body, headers, the class that is right or ""), `at_once` at a time."""
    met, todo = Load(), iter(work)
    done = 0

    async def worker() -> None:
        nonlocal done
        connection = Connection(port)
        for body, headers, right in todo:
            began = time.perf_counter()
            try:
                status, said = await connection.ask("/predict?top=1", body, headers)
                answer = json.loads(said)
            except (OSError, EOFError, ValueError):
                met.broken += 1
                connection.close()
                continue
            met.seconds.append(time.perf_counter() - began)
            met.statuses[status] += 1
            met.right += status == 200 and answer["predictions"][0]["class"] == right
            done += 1
            if done % max(1, len(work) // STEPS) == 0:
                met.memory.append(memory(pid))
        connection.close()

    began = time.perf_counter()
    async with asyncio.timeout(TOO_LONG):
        await asyncio.gather(*(worker() for _ in range(at_once)))
    met.wall = time.perf_counter() - began
    return met


def memory(pid: int) -> float:
    """Resident MB of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextlib.contextmanager
def served(folder: Path, log: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The service on a free port; it must end well."""
    command = [*BIGMODEL, "serve", str(folder), "--port", "0", *LIMITS]
    with log.open("w") as file, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True) as process:
        assert process.stdout is not None
        try:
            yield urlsplit(process.stdout.readline().strip()).port or 0, process
            process.send_signal(signal.SIGTERM)
            if (code := process.wait(30)) != 0:
                sys.exit(f"the service ended with {code}: {log.read_text()}")
        finally:
            process.kill()


def trained(model: str, folder: Path) -> Path:
    """A network that knows digits somewhat, exported."""
    run, export = folder / "run", folder / "export"
    train = ("train", model, "--data", "mnist", "--max-steps", "150", "--batch-size", "128", "--out", str(run))
    for words in (train, ("export", str(run), "--format", "onnx", "--out", str(export))):
        done = subprocess.run([*BIGMODEL, *words], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bigmodel {' '.join(words)}: {done.stderr}")
    return export


def images(count: int) -> list[tuple[bytes, dict[str, str], str]]:
    """The first of MNIST's test images as PNG files, over and over up to `count`."""
    import torch
    from PIL import Image

    from bigmodel_cli.core.registry import data

    root = Path(os.environ.get("BIGMODEL_DATA") or HERE.parent.parent / "shared" / "data")
    split = data.get("mnist")(root).load["test"]()
    batch = split.gather(torch.arange(min(count, len(split))))
    found = []
    for pixels, label in zip(batch["image"].numpy(), batch["label"].tolist(), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels[0]).save(buffer, "PNG")
        found.append((buffer.getvalue(), {"Content-Type": "image/png"}, str(label)))
    return [found[i % len(found)] for i in range(count)]


def malformed(count: int) -> list[tuple[bytes, dict[str, str], str]]:
    sys.path[:0] = [str(HERE.parent / "tests" / "serve"), str(HERE.parent / "tests")]
    from malformed import mutated  # type: ignore[import-not-found]

    return [(upload.body, upload.headers, "") for upload in mutated(count)]


def row(name: str, met: Load) -> str:
    milliseconds = [1000 * s for s in statistics.quantiles(met.seconds, n=100)]
    p50, p95, p99 = (f"{milliseconds[i - 1]:.1f}" for i in (50, 95, 99))
    codes = ", ".join(f"{count:,} x {code}" for code, count in sorted(met.statuses.items()))
    total = sum(met.statuses.values())
    memory = f"{met.memory[0]:.0f} | {met.memory[-1]:.0f}"
    return f"| {name} | {codes} | {met.broken} | {p50} | {p95} | {p99} | {total / met.wall:,.0f} | {memory} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--malformed", type=int, default=1000)
    parser.add_argument("--export", type=Path, help="an export of a network for MNIST, instead of training one")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS-serve.md")
    parser.add_argument("--keep-log", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = given.export or trained(given.model, Path(place))
        log = Path(place) / "log"
        good, bad = images(given.requests), malformed(given.malformed)
        with served(folder, log) as (port, process):

            def run(work: Any) -> Load:
                return asyncio.run(load(port, process.pid, work, given.at_once))

            warm = run(good[:500])
            answers, refused = run(good), run(bad)
            alive = run(good[:100])
        said = log.read_text()
    text = report(given, answers, refused, alive, warm, said)
    given.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    wrong = {code for code in refused.statuses if not 400 <= code < 500}
    if given.keep_log:
        given.keep_log.write_text(said)
    if set(answers.statuses) != {200} or answers.broken or refused.broken or wrong or "Traceback" in said:
        sys.exit("not every request was answered as it should")


def report(given: Any, answers: Load, refused: Load, alive: Load, warm: Load, said: str) -> str:
    cores = available_cores()
    return f"""# `bigmodel serve` under load

Written by `python benchmarks/serve_load.py`; do not edit. {platform.machine()}, {cores} cores, which client and service
share, Python {platform.python_version()}, onnxruntime {version("onnxruntime")}, uvicorn {version("uvicorn")}.
`{given.model}`, 28x28, ONNX, over loopback, {given.at_once} requests at a time; {LIMITS[3]} samples a run at most.

| load | replies | broken | p50 ms | p95 ms | p99 ms | requests/s | MB at 10% | MB at the end |
|---|---|---|---|---|---|---|---|---|
{row(f"{given.requests:,} images", answers)}
{row(f"{given.malformed:,} malformed uploads", refused)}

- Of the images {answers.right / given.requests:.2%} got the right class ({warm.right / 500:.2%} of the first 500,
  which warmed up): a reply to the wrong request would be right one time in ten.
- The service's memory during the images: {", ".join(f"{m:.0f}" for m in answers.memory)} MB.
- Tracebacks in its log: {said.count("Traceback")}; lines in it: {len(said.splitlines())}, the first of which greets.
- Alive afterwards: {alive.statuses[200]} of 100 images answered; ended by SIGTERM with exit 0.
"""


if __name__ == "__main__":
    main()
