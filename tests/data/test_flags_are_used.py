"""Each flag that says how data is read, on each kind of data: it is used, refused, or said to be of no use."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import DataSection
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.sources import GroupedSource
from bigmodel_cli.data.text.conversations import ConversationSource
from bigmodel_cli.data.user_path import source_for
from bigmodel_cli.engine.build.data import load_data, train_and_val, unused_split_note


def picture(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 8), shade).save(out, "PNG")
    return out.getvalue()


MEMBERS = [(f"{name}/{i}.png", picture(20 * i)) for name in ("cat", "dog") for i in range(6)]
OTHERS = [("cat/notes.txt", b"x"), ("dog/.hidden.png", b"x"), ("__MACOSX/cat/0.png", b"x")]


def folder(path: Path) -> Path:
    for name, raw in MEMBERS:
        (path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "f" / name).write_bytes(raw)
    return path / "f"


def tar(path: Path, name: str = "t.tar", mode: Any = "w") -> Path:
    with tarfile.open(path / name, mode) as file:
        for member, raw in [*MEMBERS, *OTHERS]:
            about = tarfile.TarInfo(member)
            about.size = len(raw)
            file.addfile(about, io.BytesIO(raw))
    return path / name


def archive(path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path / "z.zip", "w", method) as file:
        for member, raw in [*MEMBERS, *OTHERS]:
            file.writestr(member, raw)
    return path / "z.zip"


def shard(path: Path) -> Path:
    with tarfile.open(path / "s-000.tar", "w") as file:
        for i in range(12):
            label = json.dumps({"label": i % 2, "patient": i // 3}).encode()
            for name, raw in ((f"{i}.png", picture(9 * i)), (f"{i}.json", label)):
                about = tarfile.TarInfo(name)
                about.size = len(raw)
                file.addfile(about, io.BytesIO(raw))
    return path / "s-000.tar"


def image_table(path: Path) -> Path:
    folder(path)
    rows = [f"f/{name},{name[:3]},{i % 4}" for i, (name, _) in enumerate(MEMBERS)]
    (path / "i.csv").write_text("\n".join(["image,label,patient", *rows]))
    return path / "i.csv"


def lines(path: Path, name: str, row: Callable[[int], dict[str, Any]]) -> Path:
    (path / name).write_text("".join(json.dumps(row(i)) + "\n" for i in range(12)))
    return path / name


def plain(path: Path) -> Path:
    (path / "p").mkdir()
    for i in range(4):
        (path / f"p/{i}.txt").write_text(f"text {i} " * 5)
    return path / "p"


KINDS: dict[str, Callable[[Path], Path]] = {
    "class folders": folder,
    "tar": tar,
    "compressed tar": lambda path: tar(path, "t.tar.gz", "w:gz"),
    "zip": archive,
    "shards": shard,
    "table of images": image_table,
    "labelled texts": lambda path: lines(
        path, "l.jsonl", lambda i: {"text": f"good {i}", "label": "ab"[i % 2], "patient": i // 4}
    ),
    "pairs": lambda path: lines(path, "s.jsonl", lambda i: {"source": f"a {i}", "target": f"b {i}", "patient": i // 4}),
    "conversations": lambda path: lines(path, "c.jsonl", lambda i: {"prompt": f"q {i}", "completion": "a"}),
    "preferences": lambda path: lines(
        path, "d.jsonl", lambda i: {"prompt": f"q {i}", "chosen": "yes", "rejected": "no"}
    ),
    "plain texts": plain,
}
TASKS = {None: KINDS, "regression": ("class folders", "table of images", "labelled texts", "zip", "tar", "shards")}


CASES = [(kind, task) for task, kinds in TASKS.items() for kind in kinds]


def loaded(path: Path, task: str | None, **options: Any) -> Any:
    """The bundle as ``train --data PATH`` with these flags loads it, and its train and val splits."""
    source = source_for(path, None, task)
    assert source is not None
    section = {"name": source, "path": str(path), "task": task, **options}
    model = "mlp" if "image" in source else "text-cnn"
    found = resolve([Layer("flags", {"model": {"name": model}, "data": section})]).recipe.data
    bundle = load_data(found, task=task)
    return bundle, *train_and_val(bundle, found), unused_split_note(bundle, found)


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_what_no_data_has_is_refused(kind: str, task: str | None, tmp_path: Path) -> None:
    """A column that is nowhere is refused by everything that takes columns, and columns by everything else."""
    path = KINDS[kind](tmp_path)
    for flag in ({"group_by": "nowhere"}, {"columns": {"label": "nowhere"}}, {"columns": {"colour": "1"}}):
        with pytest.raises(InputError):
            loaded(path, task, **flag)


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_how_val_is_split_off_is_up_to_the_flags(kind: str, task: str | None, tmp_path: Path) -> None:
    """And a sample stays on its side whatever else comes or goes."""
    if task == "regression" and kind != "labelled texts":
        return  # names of folders are no numbers: the same files as a classifier reads
    path, options = KINDS[kind](tmp_path), {}
    if task == "regression":
        options = {"columns": {"text": "text", "label": "patient"}}
    names = {}
    for seed in range(6):
        _, train, val, note = loaded(path, task, split_seed=seed, val_fraction=0.4, **options)
        assert note is None and len(train) and len(val)
        names[seed] = val.name(0), len(val)
    assert len(set(names.values())) > 1, names


@pytest.mark.parametrize("kind", ["table of images", "labelled texts", "pairs", "shards"])
def test_groups_stay_on_one_side(kind: str, tmp_path: Path) -> None:
    bundle, train, val, _ = loaded(KINDS[kind](tmp_path), None, group_by="patient", val_fraction=0.4)
    whole = bundle.load["train"]()
    assert isinstance(whole, GroupedSource)
    sides = [set(whole.groups[part.indices].tolist()) for part in (train, val)]
    assert sides[0] and sides[1] and not sides[0] & sides[1] and len(sides[0] | sides[1]) in (3, 4)


def test_a_val_split_of_its_own_is_said_to_win(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, raw in MEMBERS:
            (tmp_path / split / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / split / name).write_bytes(raw)
    *_, note = loaded(tmp_path, None, val_fraction=0.3)
    assert note == "data.val_fraction: not used, since the data has a val split"
    section = DataSection(name="image_folder", path=str(tmp_path))
    assert unused_split_note(load_data(section), section) is None


def test_rows_keep_their_side_when_others_come(tmp_path: Path) -> None:
    """Conversations, preferences and texts, as class folders and tables do."""
    for kind in ("conversations", "preferences", "plain texts"):
        place = tmp_path / kind
        place.mkdir()
        path = KINDS[kind](place)
        before = texts_of(*loaded(path, None)[1:3])
        if path.is_dir():
            (path / "00.txt").write_text("another text, before the others")
        else:
            first, rest = path.read_text().split("\n", 1)
            new = {**json.loads(first), "prompt": "a new question"}
            path.write_text(json.dumps(new) + "\n" + first + "\n" + rest)
        after = texts_of(*loaded(path, None)[1:3])
        assert before[0] <= after[0] and before[1] <= after[1], kind
        assert sum(map(len, after)) == sum(map(len, before)) + 1


def texts_of(train: Any, val: Any) -> tuple[set[Any], set[Any]]:
    """What is in each side: the tokens of the rows, or the documents."""

    def rows(source: Any) -> set[Any]:
        if isinstance(source, ConversationSource):
            return {tuple(row[0].tolist()) for row in source.sides["chosen"]}
        return documents(source)

    return rows(train), rows(val)


def documents(source: Any) -> set[tuple[int, ...]]:
    """The documents of windows, each before its end token, 256."""
    found, one = set(), []
    for token in source.tokens.tolist():
        if token == 256:
            found.add(tuple(one))
            one = []
        else:
            one.append(token)
    return found


@pytest.mark.parametrize("make", [tar, archive, lambda path: archive(path, zipfile.ZIP_STORED)])
def test_archives_are_read_as_folders(make: Any, tmp_path: Path) -> None:
    whole, _, _, _ = loaded(folder(tmp_path), None)
    packed, _, _, _ = loaded(make(tmp_path), None)
    ours, theirs = packed.load["train"](), whole.load["train"]()
    index = torch.arange(len(theirs))
    assert torch.equal(ours.gather(index)["image"], theirs.gather(index)["image"])
    assert [ours.name(i) for i in range(12)] == [theirs.name(i) for i in range(12)]
    assert "1 file not used: .txt 1" in packed.notes and "2 hidden files not used" in packed.notes


def test_zips_that_are_not_right_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path)
    raw = path.read_bytes()
    place = raw.index(b"cat/0.png") + len("cat/0.png") + 2
    damaged = raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :]
    encrypted = bytearray(raw)
    encrypted[raw.index(b"PK\1\2") + 8] |= 1
    escaping = raw.replace(b"cat/0.png", b"../../x.p")
    for wrong, message in (
        (damaged, "cat/0.png"), (bytes(encrypted), "encrypted"), (raw[: len(raw) // 2], "damaged or cut off"),
        (escaping, "a member called"), (b"", "damaged or cut off"),
    ):  # fmt: skip
        path.write_bytes(wrong)
        with pytest.raises(InputError, match=message):
            loaded(path, None, cache="off")[1].gather(torch.arange(5))
    archive(tmp_path, zipfile.ZIP_LZMA)
    with pytest.raises(InputError, match="another way than deflate"):
        loaded(path, None)
