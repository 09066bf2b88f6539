"""WebDataset shards and Hugging Face data sets as images: real tars, real Arrow files, a hub of our own."""

from __future__ import annotations

import hashlib
import io
import json
import random
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from web import Answer, answering

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.splits import name_hash
from bigmodel_cli.data.user_data.column_values import group_names
from bigmodel_cli.data.user_data.image_discovery import list_images
from bigmodel_cli.data.user_data.image_folder import image_folder
from bigmodel_cli.data.webdataset import index

COLOURS = {"cat": (255, 0, 0), "dog": (0, 128, 0), "owl": (0, 0, 255)}


def image(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(out, kind)
    return out.getvalue()


def shard(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, raw in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


def numbered(folder: Path, shards: int = 4, each: int = 6, split: str = "train") -> None:
    """Shards of images with the class's number beside them: sample i is of class i % 3."""
    for s in range(shards):
        files = {}
        for i in range(s * each, (s + 1) * each):
            files |= {f"{i:06}.png": image([*COLOURS.values()][i % 3]), f"{i:06}.cls": str(i % 3).encode()}
        shard(folder / f"{split}-{s:06}.tar", files)


def test_a_pattern_of_shards(tmp_path: Path) -> None:
    numbered(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    pattern = tmp_path / "train-{000000..000003}.tar"
    found = image_folder(tmp_path, path=str(pattern), size=14)
    assert found.spec.classes == ("cat", "dog", "owl") and list(found.load) == ["train"]
    train = found.load["train"]()
    assert len(train) == 24 and train.name(0) == "train-000000.tar:000000.png"
    batch = train.gather(torch.tensor([23, 0, 9]))
    assert batch["label"].tolist() == [2, 0, 1]
    assert [tuple(p[:, 0, 0].tolist()) for p in batch["image"]] == [COLOURS[k] for k in ("owl", "cat", "dog")]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == []  # nothing was unpacked
    assert list_images(tmp_path).fingerprint() == list_images(str(tmp_path / "train-*.tar")).fingerprint()


def test_splits_by_name_and_labels_in_json(tmp_path: Path) -> None:
    for split, names in (("train", "cat dog cat"), ("val", "dog cat")):
        files = {}
        for i, name in enumerate(names.split()):
            about = {"species": name, "label": 99}
            files |= {f"a/{i}.left.jpg": image(COLOURS[name], "JPEG"), f"a/{i}.json": json.dumps(about).encode()}
        shard(tmp_path / split / "0.tar", files)
    pattern = str(tmp_path / "{train,val}/0.tar")
    for where in (pattern, tmp_path):
        listing = list_images(where, {"label": "species"})
        assert listing.classes == ("cat", "dog") and listing.counts("train") == [2, 1] and len(listing.splits) == 2
    assert list_images(tmp_path / "train/0.tar", {"label": "species"}).counts("train") == [2, 1]


def test_the_index_is_made_once_and_again_when_the_shard_changes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    path = shard(tmp_path / "x.tar", {"0.png": b"12345", "0.cls": b"7"})
    first = index.list_members(path)
    raw = path.read_bytes()
    assert [raw[m.offset : m.offset + m.size] for m in first] == [b"12345", b"7"]
    monkeypatch.setattr(index, "_read", lambda path: pytest.fail("read again"))
    assert index.list_members(path) == first
    monkeypatch.undo()
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    kept = next((tmp_path / "cache/shards").glob("*.json"))
    for damaged in ("", "[1]", '[["0.png", 0, 99999999]]'):
        kept.write_text(damaged)
        assert index.list_members(path) == first
    shard(path, {"0.png": b"12345678", "0.cls": b"7"})
    assert index.list_members(path)[0].size == 8


LABELLED = {"0.png": image(COLOURS["cat"]), "0.cls": b"cat", "1.png": image(COLOURS["dog"]), "1.cls": b"dog"}
BROKEN: dict[str, tuple[dict[str, bytes], str]] = {
    "no label": ({**LABELLED, "2.png": b"x"}, "2 has png: no .cls or .json"),
    "no image": ({**LABELLED, "2.cls": b"1"}, "2 has cls: no image"),
    "twice": ({**LABELLED, "2.png": b"x", "2.PNG": b"x"}, "2.PNG is twice"),
    "JSON without a class": ({**LABELLED, "2.png": b"x", "2.json": b"{}"}, "2.json: no class in it"),
    "JSON bomb": ({**LABELLED, "2.png": b"x", "2.json": b"[" * 100_000}, "2.json: no class in it"),
    "a list": ({**LABELLED, "2.png": b"x", "2.json": b'{"label": [1]}'}, "the class is [1]"),
    "Latin-1": ({**LABELLED, "2.png": b"x", "2.cls": b"\xff"}, "2.cls: no class in it"),
    "one class": ({k: v for k, v in LABELLED.items() if k[0] == "0"}, "only one class"),
    "leads out": ({**LABELLED, "../2.png": b"x"}, "a member called ../2.png"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_shards_are_named(case: str, tmp_path: Path) -> None:
    files, words = BROKEN[case]
    with pytest.raises(InputError) as caught:
        list_images(shard(tmp_path / "x.tar", files)).check_trainable()
    assert words in caught.value.line


def test_more_of_what_may_be_wrong_with_shards(tmp_path: Path) -> None:
    numbered(tmp_path, shards=2)
    for pattern, words in [
        ("train-{000000..000009}.tar", "train-000002.tar: no such shard"),
        ("none-*.tar", "none-*.tar: no such shard"),
        ("train-{5..1}.tar", "expected {low..high}"),
        ("train-{0..99999999}.tar", "with at most 100000 numbers"),
    ]:
        with pytest.raises(InputError) as caught:
            list_images(str(tmp_path / pattern))
        assert words in caught.value.line
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match="2 names; the shards have class 2"):
        list_images(tmp_path)
    cut = tmp_path / "train-000001.tar"
    cut.write_bytes(cut.read_bytes()[:3000])
    with pytest.raises(InputError, match="damaged or cut off"):
        list_images(tmp_path)


def test_the_command_trains_on_shards_of_a_pattern(run_cli: Any, tmp_path: Path) -> None:
    numbered(tmp_path / "shards")
    numbered(tmp_path / "shards", 1, 3, "val")
    words = ["--data", "shards/{train,val}-*.tar", "--set", "data.size=14"]
    done = run_cli("train", "mlp", *words, "--max-steps", 4, "--batch-size", 8, "--out", "r")
    assert done.returncode == 0, done.stderr
    assert run_cli("eval", "r").returncode == 0
    seen = run_cli("data", "inspect", "shards", "--json")
    assert json.loads(seen.stdout)["images"] == {"train": 24, "val": 3}


# --- Hugging Face


def saved(folder: Path, columns: dict[str, Any] | None = None, **splits: list[Any]) -> Path:
    """What ``save_to_disk`` writes: images in an Arrow file, of the classes given; None is a row without one."""
    datasets = pytest.importorskip("datasets")
    kinds = columns or {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "owl"])}
    made = {}
    for split, names in splits.items():
        rows = {
            "image": [{"bytes": image(COLOURS.get(str(k), (9, 9, 9))), "path": None} for k in names],
            "label": names,
        }
        made[split] = datasets.Dataset.from_dict(rows, datasets.Features(kinds))
    datasets.DatasetDict(made).save_to_disk(str(folder))
    return folder


def test_a_saved_data_set(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", train=["owl", "cat", "owl", "cat"], validation=["cat", "owl"], test=[None, None])
    found = image_folder(tmp_path, path=str(folder), size=14)
    assert found.spec.classes == ("cat", "owl") and list(found.load) == ["train", "val"]
    assert any("no images of dog" in n for n in found.notes) and any("test: 2 rows without" in n for n in found.notes)
    train = found.load["train"]()
    batch = train.gather(torch.arange(4))
    assert batch["label"].tolist() == [0, 0, 1, 1] and train.name(2) == "train[0]"
    assert tuple(batch["image"][2][:, 0, 0].tolist()) == COLOURS["owl"]
    other = saved(tmp_path / "other", train=["owl", "cat", "owl", "cat"], validation=["owl", "cat"])
    assert image_folder(tmp_path, path=str(other), size=14).fingerprint != found.fingerprint


def test_one_split_saved_alone_and_classes_as_text(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = {"image": datasets.Image(), "label": datasets.Value("string")}
    folder = saved(tmp_path / "set", kinds, train=["dog", "cat", "dog"])
    listing = list_images(folder / "train")
    assert listing.classes == ("cat", "dog") and listing.counts("train") == [1, 2]


def test_columns_that_are_not_plain_say_so(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["cat", "dog"])
    rows = {"a": [None, None], "b": [None, None], "kind": [0, 1], "size": [1, 0]}
    kinds = {"a": datasets.Image(), "b": datasets.Image(), "kind": label, "size": label}
    datasets.Dataset.from_dict(rows, datasets.Features(kinds)).save_to_disk(str(tmp_path / "set"))
    for options, words in [
        ({}, "2 columns may be the image, of a, b, kind, size"),
        ({"image": "a"}, "2 columns may be the label"),
        ({"image": "c"}, "data.image_column = c; expected one of a, b, kind, size"),
        ({"image": "kind", "label": "size"}, "expected a column of images: a, b"),
    ]:
        with pytest.raises(InputError) as caught:
            list_images(tmp_path / "set", options)
        assert words in caught.value.line
    listing = list_images(tmp_path / "set", {"image": "b", "label": "size"}, group_by="kind")
    names = group_names(str(tmp_path / "set"), "kind")  # for eval --by kind
    assert sorted(names[name_hash(item.group)] for item in listing.splits["train"]) == ["0", "1"]
    with pytest.raises(InputError, match="no column 'colour'"):
        group_names(str(tmp_path / "set"), "colour")
    with pytest.raises(InputError, match="row 0: no image"):
        listing.splits["train"][1].read()
    for file in (tmp_path / "set").glob("*.arrow"):
        file.write_bytes(b"no arrow")
    with pytest.raises(InputError, match="expected what save_to_disk wrote"):
        list_images(tmp_path / "set", {"image": "b", "label": "size"})


def test_the_command_fine_tunes_on_a_saved_data_set(run_cli: Any, tmp_path: Path) -> None:
    saved(tmp_path / "set", train=["owl", "cat", "dog"] * 4, validation=["cat", "owl", "dog"])
    options = ["--data", "./set", "--set", "data.size=14", "--max-steps", 2]
    done = run_cli("train", "mlp", *options, "--batch-size", 4, "--out", "r")
    assert done.returncode == 0, done.stderr
    done = run_cli("eval", "r", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["samples"] == 3


COMMIT = "c0ffee" * 6 + "abcd"
PARQUET = "data/train-00000-of-00001.parquet"


def hub_answers(parquet: bytes) -> dict[str, tuple[bytes, dict[str, str]]]:
    """What the hub says of owner/flowers, a data set of one file: path -> body and headers."""
    digest = hashlib.sha256(parquet).hexdigest()
    file = {"type": "file", "path": PARQUET, "size": len(parquet), "oid": "a" * 40}
    file["lfs"] = {"oid": digest, "size": len(parquet), "pointerSize": 100}
    times = {"createdAt": "2024-01-01T00:00:00.000Z", "lastModified": "2024-01-01T00:00:00.000Z"}
    about = {"id": "owner/flowers", "sha": COMMIT, "private": False, "disabled": False, "gated": False, **times}
    about |= {"downloads": 0, "likes": 0, "tags": [], "siblings": [{"rfilename": PARQUET}]}
    root, tree = "/api/datasets/owner/flowers", f"/api/datasets/owner/flowers/tree/{COMMIT}"
    folder = {"type": "directory", "path": "data", "oid": "b" * 40, "size": 0}
    said: dict[str, Any] = {root: about, f"{root}/revision/{COMMIT}": about, tree: [folder], f"{tree}/data": [file]}
    found = {path: (json.dumps(value).encode(), {}) for path, value in said.items()}
    names = {"ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(parquet))}
    return {**found, f"/datasets/owner/flowers/resolve/{COMMIT}/{PARQUET}": (parquet, names)}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    datasets = pytest.importorskip("datasets")
    saved(tmp_path / "made", train=["cat", "dog", "owl"] * 3)
    file = io.BytesIO()
    datasets.load_from_disk(str(tmp_path / "made"))["train"].to_parquet(file)
    answers = hub_answers(file.getvalue())

    def answer(query: str) -> Answer:
        body, headers = answers.get(query.partition("?")[0], (b"{}", {"X-Error-Code": "EntryNotFound"}))
        return 404 if body == b"{}" else 200, body, {**headers, "X-Repo-Commit": COMMIT}

    with answering(answer) as address:
        yield address


def test_a_data_set_of_the_hub_is_fetched_once(hub: str, run_cli: Any, tmp_path: Path) -> None:
    online = {"HF_ENDPOINT": hub, "HF_HOME": tmp_path / "home"}
    options = ["train", "mlp", "--set", "data.size=14", "--max-steps", 1, "--batch-size", 4, "--data"]
    done = run_cli(*options, "hf:owner/flowers", "--out", "r", variables=online)
    assert done.returncode == 0, done.stderr
    away = {**online, "HF_ENDPOINT": "http://127.0.0.1:9"}  # it is kept on this machine now
    again = run_cli("eval", "r", variables=away)
    assert again.returncode == 0, again.stderr
    done = run_cli(*options, "hf:owner/weeds", variables=online)
    assert done.returncode == 2 and "hf:owner/weeds: no such data set on the Hub" in done.stderr


def test_without_a_network_or_the_library_the_no_is_quick(run_cli: Any, tmp_path: Path, monkeypatch: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    away = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": tmp_path / "home"}
    for variables, reason in ((away, "cannot be reached"), ({**away, "HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")):
        clock = time.monotonic()
        done = run_cli("train", "mlp", "--data", "hf:owner/flowers", variables=variables)
        assert done.returncode == 3 and reason in done.stderr and "save_to_disk(FOLDER)" in done.stderr, done.stderr
        assert time.monotonic() - clock < 20 and not (tmp_path / "runs").exists()  # five seconds on a quiet machine
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MachineError) as caught:
        list_images("hf:owner/flowers")
    assert caught.value.hint == install_line("datasets")


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """`raw` with bits flipped, bytes overwritten, or its end gone."""
    changed = bytearray(raw)
    for _ in range(rng.choice([1, 3, 20])):
        place, kind = rng.randrange(len(changed)), rng.randrange(4)
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[max(place, 1) :]
        elif kind == 2:  # in a tar's header: the name, the size, the kind of file
            field = place // 512 * 512 + rng.choice([0, 124, 156, 257])
            changed[min(field, len(changed) - 1)] = rng.randrange(256)
        else:
            changed[place : place + 12] = rng.randbytes(12)
    return bytes(changed)


@pytest.mark.parametrize("kind", ["shard", "saved"])
def test_mutations_end_in_images_or_in_one_line(kind: str, tmp_path: Path) -> None:
    rng, tried, named = random.Random(1), 400 if kind == "shard" else 40, 0
    where = tmp_path / kind
    if kind == "shard":
        numbered(where, 1, 6)
    else:
        saved(where, train=["cat", "dog"] * 3)
    kept = {path: path.read_bytes() for path in where.rglob("*") if path.is_file()}
    for _ in range(tried):
        changed = rng.choice(sorted(kept))
        for path, raw in kept.items():
            path.write_bytes(mutated(raw, rng) if path == changed else raw)
        try:
            for items in list_images(where).splits.values():
                for item in items:
                    item.read()
        except InputError as error:
            named += 1
            assert "\n" not in error.line and len(error.line) < 400
    assert named > tried / 4
