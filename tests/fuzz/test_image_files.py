"""Mutated images in six formats, through the path that training reads them by: each is read, or named."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import figures
import numpy as np
import torch
from PIL import Image

from bigmodel_cli.core.errors import MAX_LINE, InputError
from bigmodel_cli.data.user_data.image_folder import image_folder

MUTATIONS = 300 if figures.SOAK else 60
KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """Flipped bytes (the first hundred as likely as all the rest), a cut, a hole, something in between."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(len(data), 100) if rng.random() < 0.5 else len(data))
        kind = rng.choice(("flip", "flip", "set", "cut", "zero", "insert", "repeat"))
        if kind == "flip":
            data[place] ^= 1 << rng.randrange(8)
        elif kind == "set":
            data[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
        elif kind == "cut" and place > 4:
            del data[place:]
        elif kind == "zero":
            data[place : place + 40] = bytes(len(data[place : place + 40]))
        elif kind == "insert":
            data[place:place] = rng.randbytes(rng.randint(1, 60))
        elif kind == "repeat":
            data[place:place] = data[: rng.randint(1, 200)]
    return bytes(data)


def folder_of_mutations(root: Path) -> None:
    rng = random.Random(20)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    image = image.resize((90, 60), Image.Resampling.BICUBIC)
    for i in range(MUTATIONS):
        out = io.BytesIO()
        image.save(out, KINDS[i % len(KINDS)], **({"compression": "tiff_lzw"} if i % 12 == 5 else {}))
        file = root / ("a", "b")[i % 2] / f"{i:03}.png"  # the name says nothing of the format
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(mutate(out.getvalue(), rng))


def test_every_mutated_image_is_read_or_named(tmp_path: Path, run_cli: Any) -> None:
    root = tmp_path / "photos"
    folder_of_mutations(root)
    train = image_folder(root, path=str(root), size=28, cache="off").load["train"]()
    bad = set()
    for i in range(len(train)):
        try:
            assert train.gather(torch.tensor([i]))["image"].shape == (1, 3, 32, 32)
        except InputError as error:
            assert error.line.startswith(str(root / train.name(i))) and len(error.line) <= MAX_LINE
            bad.add(train.name(i))
    assert 0.1 < len(bad) / MUTATIONS < 0.9  # the mutations bite, and are not all fatal
    done = run_cli("data", "inspect", root, "--json")
    assert done.returncode == 0 and not done.stderr.count("Traceback"), done.stderr
    assert {row["name"] for row in json.loads(done.stdout)["undecodable"]} == bad
    figures.record("mutated image", MUTATIONS, 0, f"{len(bad)} undecodable, each named; the others are read")
    done = run_cli("train", "mlp", "--data", root, "--set", "data.size=28", "--max-steps", 1)
    assert done.returncode == 2 and min(bad).split("/")[-1] in done.stderr and "Traceback" not in done.stderr
