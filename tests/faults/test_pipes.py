"""A pipe or a device where data or a checkpoint should be: it is refused in a line, and nobody waits for its end."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any

import pytest
from nursery import Nursery
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import regular_stat
from bigmodel_cli.data.image.listing import Item, file_item

SECONDS = 60.0
TRAIN = ("train", "mlp", "--epochs", 1, "--out", "r", "--data")
PIN = ("finetune", "mlp", "--data", "digits", "--out", "r", "--set", f"start.sha256={'0' * 64}", "--from")
FILM = ("train", "two-tower", "--out", "r", "--data-dir", ".", "--data")
CASES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "an image of a class folder": ("d/cat/a.png", (*TRAIN, "d")),
    "a tar": ("x.tar", (*TRAIN, "x.tar")),
    "a tar in a folder": ("d/x.tar", (*TRAIN, "d")),
    "a compressed tar": ("x.tar.gz", (*TRAIN, "x.tar.gz")),
    "a zip": ("x.zip", (*TRAIN, "x.zip")),
    "an index of token shards": ("d/index.json", (*TRAIN, "d")),
    "an index that is looked at": ("d/index.json", ("data", "inspect", "d")),
    "a table": ("x.parquet", ("train", "text-cnn", "--epochs", 1, "--out", "r", "--data", "x.parquet")),
    "a file of MovieLens": ("ml-100k/u.item", (*FILM, "movielens-100k")),
    "a pinned checkpoint": ("run/best.pt", (*PIN, "run")),
}


def done_in_time(nursery: Nursery, *arguments: Any) -> tuple[int, str]:
    """The exit code of the command and its errors; the nursery kills one that waits."""
    child, until = nursery.start(*arguments), time.monotonic() + SECONDS
    while child.running():
        assert time.monotonic() < until, f"{arguments} waits"
        time.sleep(0.02)
    return child.wait(), child.error


ENDLESS = ("a compressed tar", "a zip", "a pinned checkpoint")


@pytest.mark.parametrize(("case", "kind"), [*((c, "pipe") for c in CASES), *((c, "device") for c in ENDLESS)])
def test_it_is_refused_in_a_line(case: str, kind: str, tmp_path: Path) -> None:
    place, command = CASES[case]
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    for name in ("u.data", "u.user") if "MovieLens" in case else ():
        (tmp_path / place).with_name(name).write_text("1|24|M|writer|85711\n")
    os.mkfifo(tmp_path / place) if kind == "pipe" else (tmp_path / place).symlink_to("/dev/zero")
    with Nursery(tmp_path) as nursery:
        code, errors = done_in_time(nursery, *command)
    assert code == 2 and "a bug" not in errors and "Traceback" not in errors, errors
    assert len([line for line in errors.splitlines() if line.startswith("error:")]) == 1, errors


def test_a_picture_that_became_a_pipe_during_the_run(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    item = file_item(str(path), "a.png")
    assert item.read() == path.read_bytes()  # the control
    path.unlink()
    os.mkfifo(path)
    for refused in (item.read, functools.partial(file_item, str(path), ""), functools.partial(regular_stat, path),
                    Item("a", 0, "/dev/zero", 1 << 40, ()).read):  # fmt: skip
        with pytest.raises(InputError, match="not a regular file"):
            refused()
