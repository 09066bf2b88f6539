"""Attacks every reader with hostile files and writes the figures to RESULTS-attack.md (``make attack``).

    python benchmarks/attack.py [--files 500] [--seed 0]

Exit code 1 if any code ran, a reader raised anything but its own errors, or a limit was passed. Files of which that is
true stay in the folder that is printed at the end.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/fuzz"), str(ROOT / "tests")]
OUT = ROOT / "benchmarks/RESULTS-attack.md"
HEAD = """# The attack: hostile files for every reader

Written by `make attack`; do not edit. Each file is drawn at random from a seed (known attacks, bytes and values of a
sound file changed) and opened by the functions behind the commands, in a process of its own. An audit hook and a
canary file notice code that runs. *Code run* counts files that ran a program, unpickled an object, opened a
connection, imported a module from the file's folder, or wrote outside it.

*Memory* is the peak beyond an idle process; *bytes a byte* is what of it is beyond 64 MB, for each byte of the file (a
picture's pixels count as bytes; negative: never beyond 64 MB), at most 20. *Seconds* are of the processor; *s/MB* is
what is beyond 2 s, at most 2. Both are the worst of all files. Negative control: the same pickles, read by `pickle`.

"""
COLUMNS = (
    "| reader | files tried | code run | tracebacks | read | memory, MB | bytes a byte | seconds | s/MB "
    "| over a limit |"
)


def main() -> int:
    from attack import Tally, attack
    from attack_files import MAKERS

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--files", type=int, default=500, help="files for each reader")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", action="append", help="a reader; repeatable")
    given = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="attack-"))
    begun, rows, wrong = time.time(), [], 0
    total = Tally()
    for kind, found in attack(given.only or list(MAKERS), given.files, given.seed, folder, keep=True).items():
        for line in (*found.bugs, *found.over_memory, *found.over_time):
            print(line)  # noqa: T201
        over = len(found.over_memory) + len(found.over_time)
        if kind == "control":
            wrong += found.ran != found.tried
        else:
            wrong += found.ran + len(found.bugs) + over
            total.tried, total.ran = total.tried + found.tried, total.ran + found.ran
        name = f"*{kind}*" if kind == "control" else kind
        rows.append(
            f"| {name} | {found.tried} | {found.ran} | {len(found.bugs)} | {found.read} | {found.peak_mb:.0f} "
            f"| {found.peak:.1f} | {found.slowest:.1f} | {found.seconds:.1f} | {over} |"
        )
        print(rows[-1], flush=True)  # noqa: T201
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    foot = (
        f"\n{total.tried} files, code run {total.ran}. Seed {given.seed}, {date.today()}, {machine}, "
        f"{time.time() - begun:.0f} s.\n"
    )
    if not given.only:
        OUT.write_text("\n".join([HEAD + COLUMNS, "|---" + "|---:" * 9 + "|", *rows]) + "\n" + foot, encoding="utf-8")
    print(foot + (f"kept: {folder}" if wrong else ""))  # noqa: T201
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
