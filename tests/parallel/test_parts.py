"""Checkpoints in parts: written by each rank, read by any number of them, held to every byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from nursery import Nursery

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.engine import checkpoint

MODEL = ["train", "gpt", "--data", "letters.txt", "--precision", "fp32", "--json", "--batch-size", "8"]
SIZE = ["layers=2", "heads=2", "width=32"]
OPTIONS = [x for s in SIZE for x in ("--set", f"model.{s}")] + ["--set", "data.context=16", "--set", "train.ema_decay=0.9"]  # fmt: skip # noqa: E501
CUT = ["--nproc", "2", "--set", "parallel.strategy=fsdp"]


def last(child: Any) -> Any:
    return json.loads(child.out.read_text().splitlines()[-1])


def test_written_in_parts_and_gone_on_with_on_one_and_on_two(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("to be or not to be, that is the question\n" * 60)
    with Nursery(tmp_path) as nursery:

        def run(*arguments: Any, code: int = 0) -> Any:
            found, child = nursery.run(*arguments)
            assert found == code, child.error
            return child

        steps = ["--epochs", "1", "--set", "train.save_steps=4", "--max-steps"]
        whole = last(run(*MODEL, *OPTIONS, *CUT, *steps, 12, "--out", "whole"))
        run(*MODEL, *OPTIONS, *CUT, *steps, 12, "--set", "train.shard_above=0", "--out", "parts")
        folder = tmp_path / "parts/last.pt"
        assert folder.is_symlink() and sorted(p.name for p in folder.iterdir()) == [
            "index.json", "part-00000.safetensors", "part-00001.safetensors",
        ]  # fmt: skip
        # The two links lead to one folder, and what was saved before is gone.
        assert len(list((tmp_path / "parts").glob("parts-*"))) == 1
        single, cut = checkpoint.load(tmp_path / "whole/last.pt"), checkpoint.load(folder)
        for part in ("model", "model_ema", "optimizer", "progress", "rng"):
            assert checkpoint.digest(cut[part]) == checkpoint.digest(single[part]), part
        run("checkpoint", "consolidate", "parts", "--out", "one.pt")
        assert checkpoint.digest(checkpoint.load(tmp_path / "one.pt")["model"]) == checkpoint.digest(single["model"])
        assert "in parts" in run("checkpoint", "show", "parts", code=2).error
        run("eval", "parts", "--split", "val")
        half = [*MODEL, *OPTIONS, *CUT, "--set", "train.save_steps=4", "--set", "train.shard_above=0", "--out", "half"]
        run(*half, "--max-steps", 12, "--epochs", 1, "--timeout", 60)
        for i, more in enumerate(([], CUT)):
            shutil.copytree(tmp_path / "half", tmp_path / f"half{i}", symlinks=True)
            done = last(run(*MODEL, *OPTIONS, *more, "--epochs", 1, "--max-steps", 16, "--resume", "--out", f"half{i}"))
            assert done["steps"] == 16
    assert whole["steps"] == 12
    damage(folder)


def damage(folder: Path) -> None:
    """A byte changed anywhere, a part that is missing, rows that are claimed twice: refused, with its name."""
    part, index = folder / "part-00001.safetensors", folder / "index.json"
    raw, text = part.read_bytes(), index.read_text()
    for at in (0, len(raw) // 2, len(raw) - 1):
        part.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(InputError, match="part-00001"):
            checkpoint.load(folder)
    part.unlink()
    with pytest.raises(InputError, match="no such part"):
        checkpoint.load(folder)
    part.write_bytes(raw)
    for old, new in (("0.0", "0.5"), ("part-00001", "../part-00"), ("float32", "float64")):
        index.write_text(text.replace(old, new, 1))
        with pytest.raises(InputError, match=r"index\.json: damaged"):
            checkpoint.load(folder)
    from bigmodel_cli.engine.parts import sealed

    index.write_text('{"state": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(folder)
    for change in (rows_twice, another_type, outside):
        values = json.loads(text)
        values.pop("sha256")
        change(values)
        index.write_text(json.dumps(sealed(values)))
        with pytest.raises(InputError):
            checkpoint.load(folder)


def rows_twice(index: Any) -> None:
    tensors = index["files"][1]["tensors"]
    next(iter(tensors.values()))[0] = 0


def another_type(index: Any) -> None:
    text = json.dumps(index["state"]).replace("torch.float32", "torch.int32")
    index["state"] = json.loads(text)


def outside(index: Any) -> None:
    index["files"][1]["file"] = "../../half/last.pt/part-00001.safetensors"
