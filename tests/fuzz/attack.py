"""The attack: hostile files for every reader, opened under watch, and what came of it.

``make attack`` runs it and writes ``benchmarks/RESULTS-attack.md``; a share of it is a test, more in ``make soak``.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BYTES, TIMES = 64 << 20, 20
SECONDS, SECONDS_PER_MB = 2.0, 2.0
"""The limits: 64 MB and 20 times the file, 2 seconds of processor time and 2 more a MB. Of a picture, each pixel
counts as a byte of the file: a flat one is small as a file and large as an image, whose pixels have a limit."""


@dataclass
class Tally:
    """What came of the files of one kind."""

    tried: int = 0
    ran: int = 0
    read: int = 0
    bugs: list[str] = field(default_factory=list)
    over_memory: list[str] = field(default_factory=list)
    over_time: list[str] = field(default_factory=list)
    peak: float = 0.0
    """Bytes of memory for each byte of the file, beyond the first 64 MB: the most."""
    peak_mb: float = 0.0
    seconds: float = 0.0
    """Processor seconds for each MB of the file, beyond the first 2 seconds: the most."""
    slowest: float = 0.0

    def add(self, found: dict[str, Any], size: int, canary: bool) -> None:
        name = f"{found['kind']}: file {found['number']}"
        self.tried += 1
        self.ran += bool(found["ran"]) or canary
        self.read += None in found["answers"]
        self.bugs += [f"{name}: {a[1]}" for a in found["answers"] if a is not None and a[0] not in (2, 3)]
        if found["peak"] > BYTES + TIMES * size:
            self.over_memory.append(f"{name}: {found['peak'] / 1e6:.0f} MB for {size} bytes")
        if found["seconds"] > SECONDS + SECONDS_PER_MB * size / 1e6:
            self.over_time.append(f"{name}: {found['seconds']:.1f} s for {size} bytes")
        self.peak = max(self.peak, (found["peak"] - BYTES) / size if size else 0.0)
        self.peak_mb = max(self.peak_mb, found["peak"] / 1e6)
        self.seconds = max(self.seconds, (found["seconds"] - SECONDS) / (size / 1e6) if size else 0.0)
        self.slowest = max(self.slowest, found["seconds"])


def attack(kinds: list[str], count: int, seed: int, folder: Path, keep: bool = False) -> dict[str, Tally]:
    """Write `count` files of each kind, drawn from `seed`, and open each; with `keep`, leave those that went wrong."""
    tallies = {kind: Tally() for kind in kinds}
    command = [sys.executable, "-P", str(HERE / "attack_readers.py")]
    environment = {**_environment(), "BIGMODEL_CACHE": str(folder / "cache"), "PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as reader:
        assert reader.stdin is not None and reader.stdout is not None
        for kind, number, place, path in written(kinds, count, seed, folder):
            size = weight(path)
            reader.stdin.write(json.dumps({"kind": kind, "number": number, "path": str(path)}) + "\n")
            reader.stdin.flush()
            line = reader.stdout.readline()
            assert line, f"the reader died at {kind}: file {number}, seed {seed}"
            before = len(tallies[kind].bugs), tallies[kind].ran
            tallies[kind].add(json.loads(line), size, (place.parent / f"{place.name}-canary").exists())
            if not keep or kind == "control" or (len(tallies[kind].bugs), tallies[kind].ran) == before:
                shutil.rmtree(place, ignore_errors=True)
        reader.stdin.close()
    return tallies


def written(kinds: list[str], count: int, seed: int, folder: Path) -> Iterator[tuple[str, int, Path, Path]]:
    from attack_files import MAKERS, traps

    for kind in kinds:
        for number in range(count):
            place = folder / f"{kind.replace(' ', '-')}-{number}"
            place.mkdir(parents=True)
            canary = folder / f"{place.name}-canary"
            traps(place, canary)
            yield kind, number, place, MAKERS[kind](random.Random(f"{seed} {kind} {number}"), place, canary)


def weight(path: Path) -> int:
    """The bytes of the files in the folder of `path` without the traps, and the pixels of a picture."""
    from bigmodel_cli.core.image.images import MAX_PIXELS, image_header

    files = [p for p in path.parent.iterdir() if p.is_file() and p.suffix != ".py"]
    total = sum(p.stat().st_size for p in files)
    for file in files:
        if file.suffix == ".png":
            with contextlib.suppress(Exception):  # a damaged header can raise a dozen types
                _, width, height, _ = image_header(file.read_bytes())
                total += min(width * height, MAX_PIXELS)
    return total


def _environment() -> dict[str, str]:
    from conftest import environment

    return environment()
