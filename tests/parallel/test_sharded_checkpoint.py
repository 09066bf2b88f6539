"""Checkpoints in parts: written by each rank, read by any number of them, held to every byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nursery import Nursery
from spread import grown

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.engine.checkpoint import checkpoint, sharded
from bigmodel_cli.engine.checkpoint.sharded import ShardSpec
from bigmodel_cli.engine.checkpoint.sharded_reader import read_sharded

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
        assert "sharded checkpoint" in run("checkpoint", "show", "parts", code=2).error
        run("eval", "parts", "--split", "val")
        half = [*MODEL, *OPTIONS, *CUT, "--set", "train.save_steps=4", "--set", "train.shard_above=0", "--out", "half"]
        run(*half, "--max-steps", 12, "--epochs", 1, "--timeout", 60)
        for i, more in enumerate(([], CUT)):
            shutil.copytree(tmp_path / "half", tmp_path / f"half{i}", symlinks=True)
            done = last(run(*MODEL, *OPTIONS, *more, "--epochs", 1, "--max-steps", 16, "--resume", "--out", f"half{i}"))
            assert done["steps"] == 16
    assert whole["steps"] == 12
    damage(folder)


def test_a_rank_reads_its_own_rows_alone(tmp_path: Path) -> None:
    """On as many ranks and on more; the memory of the others' rows is not taken, a part that it needs is held to it."""
    large = torch.arange(20_000_000, dtype=torch.float32).view(1000, 20_000)
    for rank in range(2):

        def rows(value: torch.Tensor, rank: int = rank) -> tuple[torch.Tensor, int] | None:
            return (value[500 * rank : 500 * (rank + 1)], 500 * rank) if len(value) == 1000 else None

        state, local = sharded.split_state({"large": large, "small": large[0, :5]}, rows, rank == 0)
        sharded.write_shard(tmp_path, rank, local)
    sharded.write_index(tmp_path, state, 2, 10, lambda: False)
    assert torch.equal(read_sharded(tmp_path)["large"], large)
    for share in (ShardSpec(1, 2), ShardSpec(1, 3), ShardSpec(0, 1)):
        first, end = sharded.shard_rows(share, 1000)
        peak, found = grown(lambda share=share: read_sharded(tmp_path, share))
        assert found["large"].shape == large.shape and torch.equal(found["large"][first:end], large[first:end])
        assert torch.equal(found["small"], large[0, :5])
        assert share == (0, 1) or peak < 100e6  # of 80 MB it reads 40 or 27: once from the file, once for itself
        assert share == (0, 1) or not found["large"][:first].any()
    del found
    assert grown(lambda: read_sharded(tmp_path))[0] > 140e6
    part = tmp_path / "part-00001.safetensors"
    raw = bytearray(part.read_bytes())
    raw[-1] ^= 1
    part.write_bytes(raw)
    assert read_sharded(tmp_path, ShardSpec(2, 9))["large"].shape == large.shape  # rank 0, which looks at all, says so
    for share in (ShardSpec(0, 9), ShardSpec(8, 9)):
        with pytest.raises(InputError, match="part-00001"):
            read_sharded(tmp_path, share)


def damage(folder: Path) -> None:
    """A byte changed anywhere, a part that is missing, rows that are claimed twice: refused, with its name."""
    part, index = folder / "part-00001.safetensors", folder / "index.json"
    raw, text = part.read_bytes(), index.read_text()
    for at in (0, len(raw) // 2, len(raw) - 1):
        part.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(InputError, match="part-00001"):
            checkpoint.load(folder)
    part.unlink()
    with pytest.raises(InputError, match="missing shard"):
        checkpoint.load(folder)
    part.write_bytes(raw)
    for old, new in (("0.0", "0.5"), ("part-00001", "../part-00"), ("float32", "float64")):
        index.write_text(text.replace(old, new, 1))
        with pytest.raises(InputError, match=r"index\.json: damaged"):
            checkpoint.load(folder)
    from bigmodel_cli.engine.checkpoint.sharded import with_digest

    index.write_text('{"state": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(folder)
    for change in (rows_twice, another_type, outside):
        values = json.loads(text)
        values.pop("sha256")
        change(values)
        index.write_text(json.dumps(with_digest(values)))
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
