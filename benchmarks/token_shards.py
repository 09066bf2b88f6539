"""How fast `bigmodel data tokenize` cuts a text, with one process and with one a core; and what training maps of it.

    python benchmarks/token_shards.py [--copies 100]

The text is tinyshakespeare from BIGMODEL_DATA, over and over, which a cache of words makes faster than most texts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bigmodel_cli.core.processes.cpu_count import available_cores

MEASURE = """
import sys, torch
from pathlib import Path
from bigmodel_cli.core.registry import data

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

source = data.get("token_shards")(Path(), path=sys.argv[1], context=256).load["train"]()
source.gather(torch.arange(12))
before = anonymous()
for part in torch.randperm(len(source))[:24_000].split(12):
    source.gather(part)
print(anonymous() - before)
"""


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=100, help="of the 1.1 MB of text")
    copies = parser.parse_args().copies
    text = (Path(os.environ["BIGMODEL_DATA"]) / "tinyshakespeare" / "input.txt").read_bytes()
    cores = available_cores()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "text.txt").write_bytes((text + b"\n") * copies)
        size = (folder / "text.txt").stat().st_size / 1e6
        tokenizer = ("--vocab-size", "8192")
        for processes in (1, 1, cores):
            out = folder / f"shards-{len(list(folder.iterdir()))}"
            words = [
                "data",
                "tokenize",
                folder / "text.txt",
                "--out",
                out,
                "--processes",
                processes,
                "--json",
                *tokenizer,
            ]
            command = [sys.executable, "-m", "bigmodel_cli", *map(str, words)]
            clock = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds, values = time.perf_counter() - clock, json.loads(done.stdout)
            how = "a tokenizer trained too" if tokenizer[0] == "--vocab-size" else "a tokenizer taken"
            say(
                f"{how}, {processes} process{'es' * (processes > 1)}: {size:.0f} MB in {seconds:.1f} s, "
                f"{size / seconds:.1f} MB/s, {values['tokens'] / seconds / 1e6:.2f} million tokens a second"
            )
            tokenizer = ("--tokenizer", str(out / "tokenizer.json"))
        command = [sys.executable, "-c", MEASURE, str(out)]
        grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        mapped = sum(file.stat().st_size for file in out.glob("*.bin")) / 1e6
        say(f"24,000 windows of 256 read at random from {mapped:.0f} MB of shards: {grown} kB more memory")


if __name__ == "__main__":
    main()
