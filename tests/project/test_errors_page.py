"""Each message on the page of errors is what the command beside it prints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from conftest import ROOT
from PIL import Image

PAGE = ROOT / "docs/errors.md"
ENTRY = re.compile(r"^## (.+)\n\n`(bigmodel [^`]+)` ends with (\d+)\.", re.MULTILINE)


def files_of_the_page(folder: Path) -> None:
    """What the commands of the page meet: photos with faults, recipes with faults, a file that is no checkpoint."""
    places = {"photos": ("train/cat", "train/dog", "val/cat", "val/cow"), "one": ("cat",), "broken": ("cat", "dog")}
    for root, inner in places.items():
        for place in inner:
            (folder / root / place).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (40, 40), (9 * i, 9, 9)).save(folder / root / place / f"{i}.png")
    (folder / "broken/cat/4.jpg").write_bytes(b"not a picture")
    (folder / "tabs.yaml").write_text("model:\n\tname: mlp\n")
    (folder / "typo.yaml").write_text("model: {name: mlp}\ntrain:\n  epoch: 3\n")
    (folder / "download.pt").write_bytes(b"<html>404</html>")
    (folder / "notes").mkdir()
    (folder / "notes/mine.txt").write_text("mine")


def test_each_message_is_the_one_that_its_command_prints(run_cli: Any, tmp_path: Path) -> None:
    files_of_the_page(tmp_path)
    made = run_cli("train", "perceptron", "--data", "digits", "--max-steps", "2", "--out", "run")
    assert made.returncode == 0, made.stderr
    entries = ENTRY.findall(PAGE.read_text(encoding="utf-8"))
    assert len(entries) >= 20 and len(entries) == PAGE.read_text(encoding="utf-8").count("\n## ")
    wrong = []
    for message, command, code in entries:
        done = run_cli(*shlex.split(command)[1:])
        told = next((line for line in done.stderr.splitlines() if line.startswith("error: ")), "")
        if done.returncode != int(code) or message.replace("\\_", "_").replace("...", "") not in told:
            wrong.append((command, done.returncode, told))
    assert wrong == []
