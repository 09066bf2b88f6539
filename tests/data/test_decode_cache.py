"""The decoded cache: never stale, never damaged, bounded, and safe when two runs fill it at once."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nursery import Nursery
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.atomic_files import open_own
from bigmodel_cli.core.files.file_lock import try_lock
from bigmodel_cli.core.files.owners import current_owner
from bigmodel_cli.data import thread_map
from bigmodel_cli.data.image import decode_cache
from bigmodel_cli.data.image import files as image_files
from bigmodel_cli.data.user_data.image_folder import image_folder

N = 12


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(N):
        file = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (20 * i, 0, 0)).save(file)
    return tmp_path / "photos"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def load(photos: Path, **options: Any) -> tuple[torch.Tensor, int]:
    """Every image of the split by label and name, and how many of them were decoded for it."""
    decoded = 0

    def heard(what: str, done: int, total: int) -> None:
        nonlocal decoded
        decoded = done

    with thread_map.progress_listener(heard):
        train = image_folder(photos, path=str(photos), size=14, **options).load["train"]()
    return train.gather(torch.arange(len(train)))["image"], decoded


def reds(images: torch.Tensor) -> list[int]:
    return sorted(images[:, 0, 0, 0].tolist())


def test_the_second_time_nothing_is_decoded(photos: Path, cache: Path) -> None:
    first, decoded = load(photos)
    assert decoded == N and len(list(cache.glob("*.pixels"))) == 1
    second, again = load(photos)
    assert again == 0 and torch.equal(first, second)
    plain, _ = load(photos, cache="off")
    assert torch.equal(first, plain) and len(list(cache.glob("*.pixels"))) == 1


def test_another_size_or_channel_count_is_another_file(photos: Path, cache: Path) -> None:
    load(photos)
    assert load(photos, channels=1)[1] == N and load(photos, crop=1.0)[1] == N
    assert len(list(cache.glob("*.pixels"))) == 3


def test_a_changed_file_is_never_served_stale(photos: Path, cache: Path) -> None:
    """Same name, same size, same modification time: only the kernel's change time tells."""
    file = photos / "cat" / "0.png"
    Image.new("RGB", (30, 20), "red").save(file, "BMP")  # whose size does not depend on what it shows
    load(photos)
    for red in (200, 201, 202):
        before = file.stat()
        Image.new("RGB", (30, 20), (red, 0, 0)).save(file, "BMP")
        assert file.stat().st_size == before.st_size
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        images, decoded = load(photos)
        assert decoded == N and reds(images).count(red) == 1 + (red == 200)  # dog/... has 200 too


def test_added_and_removed_files(photos: Path, cache: Path) -> None:
    load(photos)
    (photos / "cat" / "0.png").rename(photos / "dog" / "moved.png")
    assert load(photos)[1] == N
    (photos / "dog" / "moved.png").unlink()
    assert len(load(photos)[0]) == N - 1


@pytest.mark.parametrize("where", ["pixels", "sums", "digest", "cut", "empty"])
def test_damage_is_found_and_mended(where: str, photos: Path, cache: Path) -> None:
    good, _ = load(photos)
    file = next(cache.glob("*.pixels"))
    raw = bytearray(file.read_bytes())
    size = 3 * 16 * 16
    if where in ("cut", "empty"):
        raw = raw[: len(raw) // 2] if where == "cut" else bytearray()
    else:
        raw[{"pixels": 5 * size + 7, "sums": N * size + 1, "digest": len(raw) - 1}[where]] ^= 1
    file.write_bytes(raw)
    for _ in range(2):
        assert torch.equal(load(photos)[0], good)
    assert load(photos)[1] == 0
    assert file.read_bytes() != bytes(raw)


def test_damage_is_not_mended_from_a_image_that_has_gone(photos: Path, cache: Path) -> None:
    train = image_folder(photos, path=str(photos), size=14).load["train"]()
    file = next(cache.glob("*.pixels"))
    raw = bytearray(file.read_bytes())
    raw[0] ^= 1
    file.write_bytes(raw)
    (photos / "cat" / "0.png").unlink()
    with pytest.raises(InputError, match=r"0\.png"):
        train.gather(torch.tensor([0]))


def test_its_lock_is_not_written_through_a_link(photos: Path, cache: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    load(photos)
    for pixels in list(cache.rglob("*.pixels")):
        lock = pixels.with_name(f".{pixels.stem}.tmp")
        lock.unlink(missing_ok=True)
        lock.symlink_to(victim)
        pixels.unlink()
    victim.write_text("kept")
    load(photos)
    assert list(cache.rglob(".*.tmp")) and victim.read_text() == "kept"


def test_a_clock_that_jumps_a_week_takes_nothing_that_is_in_use(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what looks a week old only what nobody here holds or writes is abandoned."""
    cache.mkdir(parents=True)
    here, there = current_owner(), dataclasses.replace(current_owner(), host="0" * 8)
    held, idle = cache / ".held.tmp", cache / ".idle.tmp"
    ours, theirs = (cache / f".x.pixels.{owner.token}-0123abcd.tmp" for owner in (here, there))
    for path in (idle, ours, theirs):
        path.touch()
    now = time.time()
    monkeypatch.setattr(decode_cache.time, "time", lambda: now + 7 * 24 * 3600)
    with open_own(held) as lock:
        assert try_lock(lock)
        load(photos)
        left = {path for path in (held, idle, ours, theirs) if path.exists()}
    assert left == {held, ours}


def test_the_oldest_goes_first(photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for channels, crop in ((3, 0.875), (1, 0.875), (3, 1.0)):
        before = set(cache.glob("*.pixels")) if cache.exists() else set()
        load(photos, channels=channels, crop=crop)
        (new,) = set(cache.glob("*.pixels")) - before
        sizes[channels, crop] = new
        os.utime(new, ns=(len(sizes), len(sizes)))
    load(photos, channels=3, crop=0.875)  # used again: now the newest
    monkeypatch.setenv("BIGMODEL_CACHE_GB", str(sum(p.stat().st_size for p in cache.glob("*.pixels")) / 1e9))
    load(photos, channels=1, crop=1.0)
    assert not sizes[1, 0.875].exists() and sizes[3, 0.875].exists() and sizes[3, 1.0].exists()


def test_no_room_means_decoding_every_time_and_a_note(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = load(photos)
    monkeypatch.setenv("BIGMODEL_CACHE_GB", "0.000001")
    bundle = image_folder(photos, path=str(photos), size=28)
    train = bundle.load["train"]()
    assert "no room" in bundle.notes[0] and train.gather(torch.arange(N))["image"].shape == (N, 3, 32, 32)
    monkeypatch.setenv("BIGMODEL_CACHE_GB", "much")
    with pytest.raises(InputError, match="BIGMODEL_CACHE_GB=much"):
        load(photos, channels=1)
    monkeypatch.setenv("BIGMODEL_CACHE_GB", "1")
    monkeypatch.setenv("BIGMODEL_CACHE", str(photos / "cat" / "0.png"))  # no folder, and none can be made there
    assert torch.equal(load(photos)[0], expected)


def side_by_side(task: Callable[[], Any]) -> list[Any]:
    """What three processes, begun at one moment, say of `task`."""
    context = multiprocessing.get_context("fork")  # torch is loaded: nine seconds of imports less
    begin, said = context.Barrier(3), context.SimpleQueue()

    def run() -> None:
        begin.wait(60)
        said.put(task())

    runs = [context.Process(target=run, daemon=True) for _ in range(3)]
    for process in runs:
        process.start()
    for process in runs:
        process.join(60)
    assert [process.exitcode for process in runs] == [0, 0, 0]
    return [said.get() for _ in runs]


def test_runs_that_fill_it_at_once(photos: Path, cache: Path) -> None:
    found = side_by_side(lambda: zlib.crc32(load(photos)[0].numpy()))
    assert found == [zlib.crc32(load(photos)[0].numpy())] * 3
    assert len(list(cache.glob("*.pixels"))) == 1
    assert sum(p.stat().st_size for p in cache.glob(".*")) == 0  # the lock; nothing half-written is left


def test_one_fills_it_and_the_others_wait(photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, told = image_files.decode, []
    monkeypatch.setattr(image_files, "decode", lambda *a: (time.sleep(0.05), told.append(1), real(*a))[2])
    assert sorted(side_by_side(lambda: (load(photos), len(told))[1])) == [0, 0, N]


def test_a_stop_while_decoding_leaves_nothing(photos: Path, cache: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with thread_map.progress_listener(stop), pytest.raises(KeyboardInterrupt):
        image_folder(photos, path=str(photos), size=14).load["train"]()
    assert sum(p.stat().st_size for p in cache.iterdir()) == 0


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_the_first_undecodable_file_is_named_or_left_out(mode: str, photos: Path, cache: Path) -> None:
    for i in range(N, 60):
        Image.new("RGB", (30, 20), (i, i, i)).save(photos / "cat" / f"{i}.png")
    bad = photos / "dog" / "7.png"
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(InputError, match=r"dog/7\.png: cannot decode"):
        images = image_folder(photos, path=str(photos), size=14, cache=mode).load["train"]()
        images.gather(torch.arange(60))
    bundle = image_folder(photos, path=str(photos), size=14, cache=mode, skip_bad=True)
    train = bundle.load["train"]()
    assert len(train) == len(train.labels) == 59
    assert any("1 of 60 images cannot be decoded: dog/7.png" in note for note in bundle.notes)
    assert "dog/7.png" not in {train.name(i) for i in range(59)}
    assert train.gather(torch.arange(59))["label"].tolist() == train.labels.tolist()
    for i in (1, 3, 5):
        (photos / "dog" / f"{i}.png").write_bytes(b"x")
    with pytest.raises(InputError, match="at most 5%"):
        image_folder(photos, path=str(photos), size=14, cache=mode, skip_bad=True).load["train"]()


def test_threads_of_torch_stay_what_they_were(photos: Path, cache: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    load(photos)
    assert torch.get_num_threads() == 2
    with thread_map.single_core_pool(2, "test") as pool:  # and has computed, when torch sets a thread up
        assert pool.submit(lambda: (torch.ones(3).sum(), torch.get_num_threads())[1]).result() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_a_signal_ends_the_decoding_before_the_first_step(tmp_path: Path) -> None:
    import signal

    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    for i in range(120):
        file = tmp_path / "photos" / ("a", "b")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if i == 0:
            Image.fromarray(noise).save(tmp_path / "noise.png", compress_level=9)
        os.link(tmp_path / "noise.png", file)
    with Nursery(tmp_path) as nursery:
        child = nursery.start("train", "mlp", "--data", "./photos", "--set", "data.size=16")
        deadline = time.monotonic() + 60
        while "decoding train" not in child.error:
            assert time.monotonic() < deadline and child.running(), child.error
            time.sleep(0.005)
        child.kill(signal.SIGTERM)
        assert child.wait() == 143 and "stopped before the first step" in child.error
    assert not (tmp_path / "runs").exists()
