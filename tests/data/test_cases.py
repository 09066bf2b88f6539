"""Situations from public bug reports, as small files built here: each is read right, or refused by name."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image.images import image_suffixes
from bigmodel_cli.core.readers.text_samples import read_texts
from bigmodel_cli.core.recipe import DataSection
from bigmodel_cli.core.registry import data
from bigmodel_cli.data.user_data.image_discovery import list_images
from bigmodel_cli.data.user_path import source_for
from bigmodel_cli.engine.build.data import train_and_val


def put(path: Path, count: int = 2) -> None:
    """`count` pictures in the folder `path`."""
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("L", (8, 8), 10 * i).save(path / f"{i}.png")


def tree(root: Path, *folders: str, count: int = 2) -> Path:
    for folder in folders:
        put(root / folder, count)
    return root


@dataclass(frozen=True)
class Case:
    """`make` writes the situation; `counts` are the images per class by split, or `refused` is part of the error."""

    make: Callable[[Path], Any]
    counts: dict[str, dict[str, int]] | None = None
    said: str = ""
    refused: str = ""


def _forms(root: Path) -> None:
    for split, form in (("train", "NFC"), ("val", "NFD")):
        for name in ("café", "thé"):
            put(root / split / unicodedata.normalize(form, name))


def _bytes(root: Path) -> None:
    tree(root, "b")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9")).mkdir()
    Image.new("L", (8, 8)).save(os.fsdecode(os.fsencode(root) + b"/caf\xe9/\xff.png"))


def _passed_over(root: Path) -> None:
    tree(root, "a", "b")
    for i, name in enumerate(("x.jpg_large", "x.jpg_large", "hash", "x.webm", "Thumbs.db", ".DS_Store", "._0.png")):
        (root / "a" / (f"{i}{name}" if name[0] not in "T." else name)).write_bytes(b"x")


def _kaggle(root: Path, header: str = "id,breed", suffix: str = "") -> None:
    tree(root, "train", count=3)
    put(root / "test", 4)
    (root / "test/3.png").rename(root / "test/9.png")
    rows = "".join(f"train/{i}{suffix},{'pug' if i else 'lab'}\n" for i in range(3))
    (root / "labels.csv").write_text(f"{header}\n{rows}")


FOLDERS = {
    "Training and Testing": Case(
        lambda p: tree(p, "Training/a", "Training/b", "Testing/a", "Testing/b"),
        {"train": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}},
    ),
    "seg_train within seg_train": Case(
        lambda p: tree(p, "seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a"),
        {"train": {"a": 2, "b": 2}, "test": {"a": 2}},
    ),
    "training_set": Case(
        lambda p: tree(p, "training_set/a", "training_set/b", "test_set/a", "test_set/b"),
        {"train": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}},
    ),
    "dev": Case(
        lambda p: tree(p, "train/a", "train/b", "dev/a", "dev/b"),
        {"train": {"a": 2, "b": 2}, "val": {"a": 2, "b": 2}},
    ),
    "a folder around it": Case(
        lambda p: tree(p, "archive/data/cat", "archive/data/dog"),
        {"train": {"cat": 2, "dog": 2}},
        "read from the folder archive/data/",
    ),
    "splits within the classes": Case(
        lambda p: tree(p, "cat/train", "cat/test", "dog/train", "dog/test"),
        {"train": {"cat": 2, "dog": 2}, "test": {"cat": 2, "dog": 2}},
        "splits are the folders within the classes",
    ),
    "a class called train": Case(
        lambda p: tree(p, "bus", "car", "train"), {"train": {"bus": 2, "car": 2, "train": 2}}, "train/: read as a class"
    ),
    "a flat test without labels": Case(
        lambda p: tree(p, "train/a", "train/b", "test"),
        {"train": {"a": 2, "b": 2}},
        "test/: 2 images not used: in no class folder",
    ),
    "a flat val": Case(lambda p: tree(p, "train/a", "train/b", "val"), refused="val: 2 images directly in it"),
    "both val and valid": Case(
        lambda p: tree(p, "train/a", "train/b", "val/a", "valid/a"), refused="both val/ and valid/"
    ),
    "train1 and test1": Case(
        lambda p: tree(p, "train1/a", "train1/b", "test1/a"), {"train": {"a": 2, "b": 2}, "test": {"a": 2}}
    ),
    "trainval and eval": Case(
        lambda p: tree(p, "trainval/a", "trainval/b", "eval/a"), {"train": {"a": 2, "b": 2}, "test": {"a": 2}}
    ),
    "a flat train and test1": Case(lambda p: tree(p, "train", "test1"), refused="directly in it and no class folders"),
    "a table in a flat train": Case(
        lambda p: (tree(p, "train"), (p / "train/metadata.csv").write_text("file_name,label\n0.png,a\n1.png,b\n")),
        refused="a table train/metadata.csv",
    ),
    "folds": Case(
        lambda p: tree(p, "fold1/a", "fold1/b", "fold2/a", "fold2/b"),
        {"train": {"fold1": 4, "fold2": 4}},
        "the classes are the outer folders, fold1/, fold2/, not a/, b/ in each of them",
    ),
    "names that differ in case": Case(
        lambda p: tree(p, "Cat", "cat"), {"train": {"Cat": 2, "cat": 2}}, "differ only in case or blanks: Cat and cat"
    ),
    "unlabelled images": Case(
        lambda p: tree(p, "train/a", "train/b", "train/unlabeled", "test/a", "test/b"),
        {"train": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}},
        "not used, since its samples have no label: unlabeled/ (2)",
    ),
    "nested folders": Case(lambda p: tree(p, "a/x/y", "a/z", "b"), {"train": {"a": 4, "b": 2}}),
    "other folders": Case(
        lambda p: tree(p, "train/a", "train/b", "sample"), {"train": {"a": 2, "b": 2}}, "not used: sample/ (2 images)"
    ),
    "normal forms": Case(_forms, {"train": {"café": 2, "thé": 2}, "val": {"café": 2, "thé": 2}}),
    "bytes in names": Case(_bytes, {"train": {"b": 2, "café": 1}}, "is not UTF-8: read as Latin-1"),
    "files that are no images": Case(
        _passed_over, {"train": {"a": 2, "b": 2}}, "4 files not used: .jpg_large 2, .webm 1, no suffix 1"
    ),
    "hidden files": Case(_passed_over, {"train": {"a": 2, "b": 2}}, "3 hidden files not used"),
    "images and a table, no classes": Case(_kaggle, refused="a table labels.csv"),
}


def counts(listing: Any) -> dict[str, dict[str, int]]:
    found = {s: dict(zip(listing.classes, listing.counts(s), strict=True)) for s in listing.splits}
    return {split: {name: n for name, n in classes.items() if n} for split, classes in found.items()}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(name: str, tmp_path: Path) -> None:
    case = FOLDERS[name]
    case.make(tmp_path)
    if case.refused:
        with pytest.raises(InputError) as caught:
            list_images(tmp_path)
        assert case.refused in caught.value.line
        return
    listing = list_images(tmp_path)
    assert counts(listing) == case.counts
    assert case.said in "\n".join(listing.notes)
    if not case.said:
        assert not listing.notes


def test_linked_folders_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    tree(tmp_path, "pool", count=5)
    tree(tmp_path / "set", "a", "b")
    (tmp_path / "set/a/linked").symlink_to(tmp_path / "pool", target_is_directory=True)
    (tmp_path / "set/b/circle").symlink_to(tmp_path / "set", target_is_directory=True)
    listing = list_images(tmp_path / "set")
    assert counts(listing) == {"train": {"a": 7, "b": 2}}
    assert any("1 link not followed" in note for note in listing.notes)


TABLES = {
    "id,breed without suffixes": (lambda p: _kaggle(p), None, {"lab": 1, "pug": 2}, ""),
    "image,label": (lambda p: _kaggle(p, "image,label", ".png"), None, {"lab": 1, "pug": 2}, ""),
    "filename,class": (lambda p: _kaggle(p, "filename,class", ".png"), None, {"lab": 1, "pug": 2}, ""),
    "file_name": (lambda p: _kaggle(p, "file_name,label", ".png"), None, {"lab": 1, "pug": 2}, ""),
    "any columns by flag": (
        lambda p: _kaggle(p, "x,y", ".png"), {"image": "x", "label": "y"}, {"lab": 1, "pug": 2}, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_images(name: str, tmp_path: Path) -> None:
    make, columns, classes, said = TABLES[name]
    make(tmp_path)
    assert source_for(tmp_path / "labels.csv", columns) == "image_folder"
    listing = list_images(tmp_path / "labels.csv", columns)
    assert counts(listing) == {"train": classes} and said in "\n".join(listing.notes)


def test_images_that_a_table_names_by_name_alone_or_not_at_all(tmp_path: Path) -> None:
    tree(tmp_path, "images", count=4)
    (tmp_path / "a.csv").write_text("id,label\n0,a\n1,b\n1.png,b\n")
    listing = list_images(tmp_path / "a.csv")
    assert counts(listing) == {"train": {"a": 1, "b": 1}}
    told = "\n".join(listing.notes)
    assert "1 row not used: an image that an earlier row names" in told
    assert "2 images not used: in no row of the table" in told
    (tmp_path / "a.csv").write_text("id,label\n0,a\n0,b\n")
    with pytest.raises(InputError, match="0 is also in row 2"):
        list_images(tmp_path / "a.csv")
    put(tmp_path / "more", 1)
    with pytest.raises(InputError, match=r"2 files are called 0: images/0.png, more/0.png"):
        list_images(tmp_path / "a.csv")


def labelled(path: Path, **options: Any) -> Any:
    return data.get("labelled_file")(path.parent, path=str(path), **options)


def test_labels_are_trimmed_composed_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        f"text,label\na,pos \nb, neg\nc,pos\nd,{unicodedata.normalize('NFD', 'né')}\n,pos\n"
    )
    bundle = labelled(tmp_path / "a.csv")
    assert bundle.spec.classes == ("neg", "né", "pos") and len(bundle.load["train"]()) == 4
    told = "\n".join(bundle.notes)
    assert "blanks around 2 labels removed" in told and "1 row not used: an empty text" in told
    (tmp_path / "b.jsonl").write_text('{"text": "a", "label": true}\n{"text": "b", "label": false}\n')
    assert labelled(tmp_path / "b.jsonl").spec.classes == ("false", "true")
    (tmp_path / "c.csv").write_text("text,label\na,Pos\nb,pos\n")
    assert "differ only in case or blanks: Pos and pos" in "\n".join(labelled(tmp_path / "c.csv").notes)


def test_labels_that_may_not_be_meant_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,1\nb,1.0\nc,nan\nd,x|y\ne,1\u200b\n")
    bundle = labelled(tmp_path / "a.csv")
    assert bundle.spec.classes == ("1", "1.0", "nan", "x|y")
    told = "\n".join(bundle.notes)
    assert "classes that are the same number: 1 and 1.0" in told and "nan: read as a class" in told
    assert "classes with | in them, such as x|y; several labels a sample" in told
    (tmp_path / "b.jsonl").write_text('{"text": "a", "label": ["x", "y"]}\n')
    with pytest.raises(InputError, match="label is a list"):
        labelled(tmp_path / "b.jsonl")
    (tmp_path / "c.csv").write_text("text,label\n" + "".join(f"t {i},{i / 7:.2f}\n" for i in range(40)))
    bundle = labelled(tmp_path / "c.csv")
    with pytest.raises(InputError) as caught:
        train_and_val(bundle, DataSection(name="labelled_file"))
    assert "--task regression" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("cells", "options", "names"),
    [
        (["a|b", "b", "", "a"], {}, ("a", "b")),
        (["\"['a', 'b c']\"", "\"['b c']\"", "[]", "a"], {}, ("a", "b c")),
        (["a b", "b", "a", "b a"], {"separator": " "}, ("a", "b")),
        (["a b", "b", "a", ""], {}, ("a", "a b", "b")),
    ],
)
def test_several_labels_in_a_cell(cells: list[str], options: Any, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"t {i},{cell}\n" for i, cell in enumerate(cells)))
    path = str(tmp_path / "a.csv")
    bundle = data.get("text_targets")(tmp_path, None, "multi_label_classification", path=path, **options)
    assert bundle.spec.classes == names
    one = not options and names == ("a", "a b", "b")
    assert any("no sample has several labels" in note for note in bundle.notes) == one


def test_texts_in_class_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("pos", "neg"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(6):
                (tmp_path / split / name / f"{i}_9.txt").write_bytes(f"{name} é {i}".encode("latin-1"))
    (tmp_path / "train/unsup").mkdir()
    (tmp_path / "train/unsup/0.txt").write_text("x")
    (tmp_path / "train/urls_pos.txt").write_text("http://x")
    (tmp_path / "train/pos/empty.txt").write_text("")
    (tmp_path / "imdb.vocab").write_text("x")
    assert source_for(tmp_path) == "text_folders"
    bundle = data.get("text_folders")(tmp_path, path=str(tmp_path))
    assert bundle.spec.classes == ("neg", "pos")
    assert {split: load().labels.bincount().tolist() for split, load in bundle.load.items()} == {
        "train": [6, 6], "test": [6, 6],
    }  # fmt: skip
    told = "\n".join(bundle.notes)
    for said in ("unsup/ (1)", "1 text not used", "1 empty file", "read as cp1252", "and 21 more", ".vocab 1"):
        assert said in told, told
    tree(tmp_path / "images", "a", "b")
    assert source_for(tmp_path / "images") == "image_folder"


def test_a_folder_of_one_table_a_split(tmp_path: Path) -> None:
    for name, rows in (("train.csv", "a,x\nb,y\n"), ("dev.csv", "c,x\nd,y\n")):
        (tmp_path / name).write_text("text,label\n" + rows)
    (tmp_path / "test.csv").write_text("id,text\n1,e\n")
    (tmp_path / "sample_submission.csv").write_text("id,label\n1,x\n")
    assert source_for(tmp_path) == "labelled_file"
    bundle = data.get("labelled_file")(tmp_path, path=str(tmp_path))
    assert {split: len(load()) for split, load in bundle.load.items()} == {"train": 2, "val": 2}
    told = "\n".join(bundle.notes)
    assert "test.csv: not used: it has no labels" in told and "not used: sample_submission.csv" in told


def test_groups_stay_on_one_side(tmp_path: Path) -> None:
    rows = "".join(f"text {i},{'ab'[i // 3 % 2]},p{i // 3}\n" for i in range(120))
    (tmp_path / "a.csv").write_text("text,label,patient\n" + rows)
    bundle = labelled(tmp_path / "a.csv", group_by="patient")
    train, val = train_and_val(bundle, DataSection(name="labelled_file", val_fraction=0.2))
    sides = [{side.source.groups[i].item() for i in side.indices} for side in (train, val)]
    assert not sides[0] & sides[1] and len(sides[0]) + len(sides[1]) == 40 and len(val)


SHARED = ROOT.parent / "shared" / "cases"
TEXT_CASES = {
    "extra-comma.csv": ":72: 3 cells; the header has 2",
    "blank-label.csv": ": no label",
    "quotation-spans-rows.tsv": 60, "lone-quote.tsv": 60, "short-source-long-target.jsonl": 60,
    "quoted-header.csv": 80, "capital-header.csv": 80, "semicolon.csv": 80, "utf16.csv": 80, "label-spaces.csv": 80,
    "telling-words-late.csv": 80, "predict-this-table.csv": 80,
}  # fmt: skip
"""A file of ../shared/cases/text -> the rows that it has, or what it is refused with."""


@pytest.mark.parametrize("name", TEXT_CASES)
def test_the_shared_text_cases(name: str) -> None:
    path, expected = SHARED / "text" / name, TEXT_CASES[name]
    if not path.exists():
        pytest.skip("no ../shared/cases")
    source = str(source_for(path))
    if isinstance(expected, str):
        with pytest.raises(InputError) as caught:
            data.get(source)(path.parent, path=str(path))
        assert expected in caught.value.line
        return
    bundle = data.get(source)(path.parent, path=str(path), tokenizer="word")
    assert sum(len(load()) for load in bundle.load.values()) == expected
    assert bundle.spec.classes == (("neg", "pos") if source == "labelled_file" else ())
    assert len(list(read_texts(path, "text" if source == "labelled_file" else "source"))) == expected


THREE = {"glioma": 10, "none": 10, "pituitary": 10}
SEGMENTS = {"forest": 8, "sea": 8, "street": 8}
IMAGE_CASES: dict[str, dict[str, dict[str, int]]] = {
    "training-testing": {"train": THREE, "test": THREE},
    "seg-train": {"train": SEGMENTS, "test": SEGMENTS},
    "holdout/classes": {"train": {"cat": 20, "dog": 20, "fox": 20}},
    "holdout/one-class": {"train": {"dog": 20}},
    "holdout/test-only": {"test": {"cat": 20, "dog": 20}},
    "thirty-three": {"train": {"cat": 17, "dog": 16}, "val": {"cat": 4, "dog": 4}},
}


@pytest.mark.parametrize("name", IMAGE_CASES)
def test_the_shared_image_cases(name: str) -> None:
    path = SHARED / "images" / name
    if not path.exists():
        pytest.skip("no ../shared/cases")
    assert counts(list_images(path)) == IMAGE_CASES[name]


def test_the_shared_cases_of_files_passed_over_and_small_classes(tmp_path: Path) -> None:
    if not SHARED.exists():
        pytest.skip("no ../shared/cases")
    listing = list_images(SHARED / "images" / "passed-over")
    read = {".heic": 40, ".avif": 4}
    unused = {kind: n for kind, n in read.items() if kind not in image_suffixes()} | {".jpg_large": 40, "no suffix": 40}
    assert f"{sum(unused.values())} files not used" in "\n".join(listing.notes)
    assert all(f"{kind} {n}" in "\n".join(listing.notes) for kind, n in unused.items())
    for name in ("one-each", "minor-class"):
        path = SHARED / "images" / name
        bundle = data.get("image_folder")(tmp_path, path=str(path), cache="off")
        if name == "one-each":
            with pytest.raises(InputError, match="too few samples"):
                train_and_val(bundle, DataSection(name="image_folder"))
        else:
            sides = train_and_val(bundle, DataSection(name="image_folder"))
            assert all(side.labels.bincount(minlength=3).min() >= 1 for side in sides)
