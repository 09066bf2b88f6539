"""Shards streamed from a web server: the order, what is fetched, what a hostile or changed server may do."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from web import folder_served

from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.data.batches import Batches
from bigmodel_cli.data.webdataset.order import LANES, shard_order
from bigmodel_cli.data.webdataset.shard_index import read_shard_index
from bigmodel_cli.data.webdataset.stream import ShardStream, evict_shards, make_index, shard_stream

SHARDS, EACH = 17, 8


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """17 shards of 8 images with their index, and the address of a server that has them."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"part-{shard:03}.tar", "w") as tar:
            for i in range(EACH):
                image = io.BytesIO()
                Image.new("RGB", (16, 16), (shard * 15, i * 30, 0)).save(image, "PNG")
                for name, raw in (
                    (f"{shard:03}-{i}.png", image.getvalue()),
                    (f"{shard:03}-{i}.cls", b"ab"[i % 2 :][:1]),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(raw)
                    tar.addfile(info, io.BytesIO(raw))
    (folder / "index.json").write_text(json.dumps(make_index(sorted(folder.glob("*.tar")), folder / "index.json")))
    with folder_served(folder) as address:
        yield folder, f"{address}/index.json"


@pytest.fixture(autouse=True)
def own_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))


def load(where: str, split: str = "train", window: int = 16) -> ShardStream:
    return shard_stream(Path(), path=where, size=16, crop=1.0, window=window).load[split]()  # type: ignore[return-value]


@pytest.mark.parametrize("steps", [1, 7, 40, 1000])
def test_an_order_has_every_sample_once_and_each_process_its_own_shards(steps: int) -> None:
    def drawn(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return shard_order([100] * 40, torch.randperm(40, generator=generator).tolist(), 200, steps, generator)

    order = drawn(3)
    assert torch.equal(order.sort().values, torch.arange(4000))
    assert torch.equal(order, drawn(3)) and not torch.equal(order, drawn(4))
    if steps == 40:  # 100 samples a step: no multiple of LANES, so that a few come from the neighbour's pieces
        for ranks in (2, 4, 8):
            touched = [
                {int(i) // 100 for part in order.tensor_split(steps) for i in part.tensor_split(ranks)[r]}
                for r in range(ranks)
            ]
            assert max(map(len, touched)) <= 40 / ranks + 8
    # Nearly sequential: 200 consecutive samples of a lane come from a few shards.
    lane = torch.cat([part.tensor_split(LANES)[0] for part in order.tensor_split(steps)])
    assert len({int(i) // 100 for i in lane[:200]}) <= 5


def test_it_trains_what_the_shards_hold_and_fetches_each_once(served: tuple[Path, str]) -> None:
    folder, address = served
    here, there = load(str(folder / "index.json")), load(address)
    assert len(there) == 16 * EACH  # the last shard validates
    steps = list(Batches(there, 32, seed=0).steps(0))
    seen = torch.cat([b["index"] for b in steps])
    assert torch.equal(seen.sort().values, torch.arange(len(there)))
    assert len(there.downloaded) == len(set(there.downloaded)) == 16
    again = Batches(here, 32, seed=0).steps(0)
    for ours, theirs in zip(steps, again, strict=True):
        assert torch.equal(ours["image"], theirs["image"]) and torch.equal(ours["label"], theirs["label"])
    assert not here.downloaded
    assert len(load(address, "val")) == EACH and "016-0.png" in load(address, "val").name(0)


def test_a_resumed_epoch_goes_on_and_fetches_only_what_is_left(served: tuple[Path, str], tmp_path: Path) -> None:
    _, address = served
    whole = [b["index"] for b in Batches(load(address, window=8), 16, seed=5).steps(2)]
    for file in (tmp_path / "cache" / "streamed").glob("*.tar"):
        file.unlink()
    late = load(address, window=8)
    rest = [b["index"] for b in Batches(late, 16, seed=5).steps(2, start=6)]
    assert [r.tolist() for r in rest] == [w.tolist() for w in whole[6:]]
    assert len(late.downloaded) <= 8, "a quarter of the epoch is left: the second shard of each of the eight pieces"


def test_processes_fetch_their_own_shards(served: tuple[Path, str], tmp_path: Path, monkeypatch: Any) -> None:
    _, address = served
    seen, downloaded = [], []
    for rank in range(4):
        monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / f"node{rank}"))
        source = load(address, window=8)
        steps = Batches(source, 32, seed=1, shard=rank, shards=4).steps(0)
        seen += [i for b in steps for i in b["index"].tolist()]
        downloaded.append(set(source.downloaded))
    assert sorted(seen) == list(range(16 * EACH))
    assert max(map(len, downloaded)) <= 5, "16 shards for 4 processes, and the one that is fetched ahead"


def test_old_shards_make_room(served: tuple[Path, str], tmp_path: Path, monkeypatch: Any) -> None:
    folder, address = served
    size = (folder / "part-000.tar").stat().st_size
    monkeypatch.setenv("BIGMODEL_CACHE_GB", str(3.5 * size / 1e9))
    source = load(address)
    assert sum(len(b["index"]) for b in Batches(source, 32, seed=0).steps(0)) == len(source)
    assert len(list((tmp_path / "cache" / "streamed").glob("*.tar"))) <= 3
    evict_shards(tmp_path / "cache" / "streamed", 10**12)
    assert not list((tmp_path / "cache" / "streamed").glob("*.tar"))


def test_several_make_room_at_once(tmp_path: Path) -> None:
    for _ in range(5):
        for i in range(300):
            (tmp_path / f"{i}.tar").write_bytes(b"x")
        together = threading.Barrier(4)

        def clear(together: threading.Barrier = together) -> None:
            together.wait()
            evict_shards(tmp_path, 10**15)

        with ThreadPoolExecutor(4) as pool:
            for cleared in [pool.submit(clear) for _ in range(4)]:
                cleared.result()
        assert not list(tmp_path.glob("*.tar"))


def test_a_changed_or_hostile_server_is_refused(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    index = json.loads((folder / "index.json").read_text())
    (folder / "part-003.tar").write_bytes((folder / "part-004.tar").read_bytes())
    with pytest.raises(BigmodelError, match=r"part-003\.tar"):
        load(address).gather(torch.tensor([3 * EACH]))
    entry = index["shardlist"][0]
    for url in ("../x.tar", "/etc/passwd", "file:///etc/passwd", "http://elsewhere/x.tar", 3):
        (folder / "index.json").write_text(json.dumps({**index, "shardlist": [{**entry, "url": url}]}))
        with pytest.raises(InputError):
            read_shard_index(address)
    for sha256 in (("../" * 10 + "x" * 64)[:64], "F" * 64):  # the cache's file has it for a name
        (folder / "index.json").write_text(json.dumps({**index, "shardlist": [{**entry, "sha256": sha256}]}))
        with pytest.raises(InputError):
            read_shard_index(address)
    (folder / "index.json").write_text(json.dumps({**index, "shardlist": [{**entry, "bytes": 512}, entry]}))
    with pytest.raises(BigmodelError, match="more than 512 bytes"):
        load(address).gather(torch.tensor([0]))
    for text in ("", "[]", "{}", "[" * 10**5, json.dumps({**index, "classes": []})):
        (folder / "index.json").write_text(text)
        with pytest.raises(InputError):
            read_shard_index(address)
    with pytest.raises(InputError, match="https"):
        read_shard_index("http://10.0.0.1/index.json")
    with pytest.raises(BigmodelError):
        read_shard_index(address + ".none")


def test_the_commands(served: tuple[Path, str], run_cli: Any) -> None:
    folder, address = served
    done = run_cli("data", "index", str(folder / "part-*.tar"), "--out", str(folder / "index.json"))
    assert done.returncode == 0 and "17 shards, 136 samples, 2 classes" in done.stdout, done.stderr
    options = ["--set", "data.size=16", "--batch-size", "32", "--max-steps", "3"]
    done = run_cli("train", "resnet8", "--data", address, *options, "--out", "run")
    assert done.returncode == 0, done.stderr
