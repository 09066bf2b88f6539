"""Real MNIST, raw and gzipped; damaged files; downloads from a server on this machine."""

import dataclasses
import gzip
import hashlib
import os
import shutil
import socket
import struct
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from web import answering, folder_served

from bigmodel_cli.core.errors import BigmodelError, InputError, MachineError
from bigmodel_cli.core.files.owners import current_owner
from bigmodel_cli.core.registry import data
from bigmodel_cli.data import download as downloads
from bigmodel_cli.data.download import download
from bigmodel_cli.data.image.mnist import read_idx

ROOT = Path(os.environ.get("BIGMODEL_DATA") or Path(__file__).parents[2] / "../shared/data")
REAL = pytest.mark.skipif(not (ROOT / "mnist").is_dir(), reason="real MNIST is not on this machine (BIGMODEL_DATA)")
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def idx(values: torch.Tensor) -> bytes:
    head = struct.pack(f">BBBB{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
    return head + values.to(torch.uint8).numpy().tobytes()


def small_set(folder: Path, n: int = 30, side: int = 28) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "t10k"):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(torch.randint(0, 256, (n, side, side))))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx(torch.arange(n) % 10))


@REAL
def test_real_mnist_is_the_published_one():
    bundle = data.get("mnist")(ROOT)
    for split, stem, n in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        source = bundle.load[split]()
        assert source.images.shape == (n, 1, 28, 28) and source.images.dtype == torch.uint8
        images, labels = idx(source.images[:, 0]), idx(source.labels)
        assert hashlib.md5(images).hexdigest() == MD5[f"{stem}-images-idx3-ubyte"]
        assert hashlib.md5(labels).hexdigest() == MD5[f"{stem}-labels-idx1-ubyte"]
        assert bundle.load[split]() is source


@REAL
def test_raw_files_in_torchvisions_layout_are_the_same(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (ROOT / "mnist").glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    ours, theirs = (data.get("mnist")(root).load["test"]() for root in (tmp_path, ROOT))
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.labels, theirs.labels)


def test_a_folder_of_the_files_themselves_is_found(tmp_path):
    small_set(tmp_path)
    assert len(data.get("mnist")(tmp_path).load["train"]()) == 30


GOOD = idx(torch.randint(0, 256, (5, 28, 28)))


@pytest.mark.parametrize(
    "content",
    [b"", GOOD[:3], GOOD[:9], GOOD[:-1], GOOD + b"x", b"\0\0\x0d\3" + GOOD[4:], b"PK" + GOOD,
     GOOD[:4] + b"\xff" * 12 + GOOD[16:], idx(torch.zeros(0, 28, 28))],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_idx_file_is_named(tmp_path, content, packed):
    path = tmp_path / ("train-images-idx3-ubyte" + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError, match="train-images-idx3-ubyte"):
        read_idx(path)


def test_every_truncation_and_bit_flip_of_a_gzip_file_is_noticed(tmp_path):
    path = tmp_path / "x.gz"
    whole = idx(torch.arange(384).view(24, 16))
    packed = gzip.compress(whole, mtime=0)
    harmless = set(range(4, 10))  # time, flags and system of the header are not content
    for i in range(len(packed)):
        path.write_bytes(packed[:i])
        with pytest.raises(InputError):
            read_idx(path)
        if i not in harmless and i != 3:
            path.write_bytes(packed[:i] + bytes([packed[i] ^ 0x10]) + packed[i + 1 :])
            with pytest.raises(InputError):
                read_idx(path)


@pytest.mark.parametrize("fault", ["labels", "count", "side"])
def test_files_that_do_not_fit_each_other_are_refused(tmp_path, fault):
    small_set(tmp_path / "mnist", side=14 if fault == "side" else 28)
    if fault == "labels":
        (tmp_path / "mnist/train-labels-idx1-ubyte").write_bytes(idx(torch.arange(30)))
    if fault == "count":
        (tmp_path / "mnist/train-labels-idx1-ubyte").write_bytes(idx(torch.arange(10)))
    with pytest.raises(InputError, match="train-"):
        data.get("mnist")(tmp_path).load["train"]()


@contextmanager
def server(*script):
    """The address of one that answers from `script`, and its requests: a status, or bytes, or bytes and how many are
    promised; the last for ever."""
    asked = []

    def answer(path):
        given = script[min(len(asked), len(script) - 1)]
        asked.append(path)
        if isinstance(given, int):
            return given, b"", {}
        body, promised = given if isinstance(given, tuple) else (given, len(given))
        return 200, body, {"Content-Length": str(promised)}

    with answering(answer) as address:
        yield address, asked


BODY = b"real content" * 10_000
BODY_SHA256 = hashlib.sha256(BODY).hexdigest()


def fetch(url, folder, monkeypatch):
    monkeypatch.setenv("BIGMODEL_MIRROR", url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return download(["https://unused.invalid/f.gz"], folder / "f.gz", sha256=BODY_SHA256, what="mnist")


@pytest.mark.parametrize(
    "script", [(BODY,), (500, BODY), (503, 500, BODY), ((BODY[:999], len(BODY)), BODY), ((BODY, "many"),)]
)
def test_a_download_arrives_whole_also_after_failures(tmp_path, monkeypatch, script):
    seen = []
    monkeypatch.setattr(downloads, "on_progress", [lambda *args: seen.append(args)])
    gone = dataclasses.replace(current_owner(), started=1)
    (tmp_path / f".f.gz.{gone.token}-0123abcd.tmp").write_bytes(BODY[:99])  # of one that was killed
    with server(*script) as (address, asked):
        fetch(address, tmp_path, monkeypatch)
        assert len(asked) == len(script)
    assert [p.name for p in tmp_path.iterdir()] == ["f.gz"] and (tmp_path / "f.gz").read_bytes() == BODY
    promised = None if script == ((BODY, "many"),) else len(BODY)
    assert seen[-1] == ("f.gz", len(BODY), promised)


@pytest.mark.parametrize("script", [(b"something else",), ((BODY[:999], len(BODY)),), (404,), (500,)])
def test_a_wrong_download_leaves_nothing(tmp_path, monkeypatch, script):
    with server(*script) as (address, _), pytest.raises(BigmodelError):
        fetch(address, tmp_path, monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_speak_http_is_one_line(tmp_path, monkeypatch):
    listener = socket.create_server(("127.0.0.1", 0))

    def speak():
        for _ in range(10):
            try:
                peer = listener.accept()[0]
            except OSError:
                return
            peer.recv(1000)
            peer.sendall(b"\x00nonsense\r\n\r\n")
            peer.close()

    threading.Thread(target=speak, daemon=True).start()
    with listener, pytest.raises(MachineError):
        fetch(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path, monkeypatch)


@pytest.mark.parametrize("silent", [False, True])
def test_no_network_is_said_within_ten_seconds(tmp_path, monkeypatch, silent):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if not silent:
            listener.close()
        monkeypatch.setenv("BIGMODEL_MIRROR", f"http://127.0.0.1:{port}")
        started = time.monotonic()
        with pytest.raises(MachineError, match="cannot download mnist") as caught:
            data.get("mnist")(tmp_path)
    assert time.monotonic() - started < 10
    assert "--data-dir" in caught.value.hint and "--data digits" in caught.value.hint


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "cifar10"])
def test_every_set_asks_an_https_mirror(tmp_path, monkeypatch, name):
    """With a network nobody answers on, an address is tried for each: there is one that is allowed."""
    monkeypatch.delenv("BIGMODEL_MIRROR", raising=False)
    asked = []

    def nobody(opener, address, *args, **kwargs):
        asked.append(getattr(address, "full_url", address))
        raise OSError("no network")

    monkeypatch.setattr(downloads.urllib.request.OpenerDirector, "open", nobody)
    with pytest.raises(MachineError):
        data.get(name)(tmp_path)
    assert asked and all(address.startswith("https://") for address in asked)


def test_plain_http_elsewhere_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="https"):
        fetch("http://mirror.example.org", tmp_path, monkeypatch)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with server(BODY) as (address, _), pytest.raises(MachineError, match="file"):
        fetch(address, tmp_path / "file", monkeypatch)


@REAL
def test_mnist_downloads_from_a_mirror(tmp_path, monkeypatch):
    """The real files, recompressed here, have another SHA-256 than the published .gz: refused and removed."""
    site = tmp_path / "site"
    shutil.copytree(ROOT / "mnist", site)
    with folder_served(site) as address:
        monkeypatch.setenv("BIGMODEL_MIRROR", address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(BigmodelError) as caught:
            data.get("mnist")(tmp_path / "data")
        assert caught.value.exit_code == 3
    assert [p for p in (tmp_path / "data").rglob("*") if p.is_file()] == []
