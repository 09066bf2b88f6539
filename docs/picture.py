"""docs/first-steps.svg: a terminal of 100 columns after README's first commands were typed, as it really looked.

    python docs/picture.py

Needs tmux. Trains for about a minute, so leave the machine alone meanwhile: the picture shows images per second.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

COMMANDS = (
    "bigmodel train resnet18 --data digits --out runs/first",
    "bigmodel eval runs/first --split test | head -n 10",
    "bigmodel data sample digit.png && bigmodel predict runs/first digit.png",
)
COLUMNS, ROWS, SESSION = 100, 80, f"bigmodel-picture-{os.getpid()}"
PICTURE = Path(__file__).with_name("first-steps.svg")


def tmux(*arguments: str) -> str:
    return subprocess.run(["tmux", "-L", SESSION, *arguments], check=True, capture_output=True, text=True).stdout


def screen(folder: Path) -> str:
    """What the terminal shows after all commands, with its escapes."""
    (folder / "rc").write_text(f"PS1='$ '\nPATH={Path(sys.executable).parent}:$PATH\n")
    size = ["-x", str(COLUMNS), "-y", str(ROWS)]
    tmux("-f", os.devnull, "new-session", "-d", *size, "-c", str(folder), "bash --noprofile --rcfile rc -i")
    try:
        time.sleep(2)  # bash starts
        for command in COMMANDS:
            tmux("send-keys", f"{command}; touch done", "Enter")
            while not (folder / "done").exists():
                time.sleep(1)
            (folder / "done").unlink()
        time.sleep(1)
        return tmux("capture-pane", "-p", "-e").rstrip().replace("; touch done", "").removesuffix("$").rstrip()
    finally:
        tmux("kill-server")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        shown = screen(Path(folder))
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(shown))
    PICTURE.write_text(console.export_svg(title="bigmodel", theme=DIMMED_MONOKAI), encoding="utf-8")


if __name__ == "__main__":
    main()
