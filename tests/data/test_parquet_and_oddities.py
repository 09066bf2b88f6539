"""Parquet files as tables, and layouts that were misread in silence once."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.text_samples import Reading, read_texts
from bigmodel_cli.core.recipe import DataSection
from bigmodel_cli.data.targets import REGRESSION
from bigmodel_cli.data.user_data.image_discovery import list_images
from bigmodel_cli.data.user_path import source_for
from bigmodel_cli.engine.build.data import load_data

TEXTS = [(f"a {'fine' if i % 2 else 'dull'} film, number {i}", "pos" if i % 2 else "neg") for i in range(12)]


def opened(path: Path, task: str | None = None, **options: Any) -> Any:
    name = source_for(path, options.get("columns"), task)
    assert name is not None
    return load_data(DataSection(name=name, path=str(path), task=task, **options))


def parquet(path: Path, columns: dict[str, Any], classes: list[str] | None = None) -> Path:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    table = arrow.table(columns)
    if classes:
        about = {"info": {"features": {"label": {"names": classes, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(table, path)
    return path


def picture(path: Path, shade: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).convert(mode).save(path)


def test_texts_in_parquet_are_read_as_those_of_a_csv(tmp_path: Path) -> None:
    texts, labels = zip(*TEXTS, strict=True)
    file = parquet(tmp_path / "t.parquet", {"id": list(range(12)), "text": texts, "label": labels})
    bundle = opened(file)
    (tmp_path / "t.csv").write_text("id,text,label\n" + "".join(f'{i},"{a}",{b}\n' for i, (a, b) in enumerate(TEXTS)))
    same = opened(tmp_path / "t.csv")
    assert (bundle.spec, bundle.fingerprint) == (same.spec, same.fingerprint)
    assert list(bundle.notes) == [note.replace("t.csv", "t.parquet") for note in same.notes]
    found = list(read_texts(file, "text"))
    assert found[0] == (f"{file}: row 1", texts[0]) and [text for _, text in found] == list(texts)
    numbers = parquet(tmp_path / "n.parquet", {"text": texts, "score": [i / 2 for i in range(12)]})
    valued = opened(numbers, REGRESSION, columns={"label": "score"}).load["train"]()
    assert valued.label_values[:, 0].tolist() == [i / 2 for i in range(12)]
    with pytest.raises(InputError, match=r"n\.parquet: row 3: text is null"):
        opened(parquet(numbers, {"text": ["a", "b", None], "label": ["x", "y", "x"]}))
    numbers.write_bytes(b"PAR1 and no more PAR1")
    with pytest.raises(InputError, match="expected a Parquet file"):
        opened(numbers)


def test_shards_of_a_published_data_set_are_one_split_with_the_names_of_its_classes(tmp_path: Path) -> None:
    for i in range(2):
        columns = {"text": [t for t, _ in TEXTS[i::2]] + [f"one more {i}"], "label": [i] * 6 + [1 - i]}
        parquet(tmp_path / f"data/train-0000{i}-of-00002.parquet", columns, ["bad", "good"])
    parquet(tmp_path / "data/test-00000-of-00001.parquet", {"text": ["a", "b"], "label": [1, 0]}, ["bad", "good"])
    (tmp_path / "README.md").write_text("about")
    bundle = opened(tmp_path)
    assert bundle.spec.classes == ("bad", "good")
    assert {split: load().labels.tolist() for split, load in bundle.load.items()} == {
        "train": [0] * 6 + [1] + [1] * 6 + [0], "test": [1, 0],
    }  # fmt: skip
    assert any("not used: README.md" in note for note in bundle.notes)


def test_a_table_in_a_zip_of_its_own_is_read(tmp_path: Path) -> None:
    rows = "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in TEXTS)
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.csv", rows)
        archive.writestr("__MACOSX/._t.csv", b"\0")
    (tmp_path / "t.csv").write_text(rows)
    assert opened(tmp_path / "t.csv.zip").fingerprint == opened(tmp_path / "t.csv").fingerprint
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "a") as archive:
        archive.writestr("more.csv", rows)
    with pytest.raises(InputError, match="a zip of 2 files: unpack it"):
        opened(tmp_path / "t.csv.zip")
    (tmp_path / "t.csv.zip").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match=r"t\.csv\.zip: cannot read"):
        opened(tmp_path / "t.csv.zip")


def test_blanks_before_quoted_cells_are_no_part_of_them(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text('"text", "label"\n' + "".join(f'"{text}", "{label}"\n' for text, label in TEXTS))
    bundle = opened(file)
    assert bundle.spec.classes == ("neg", "pos")
    assert "t.csv: blanks before quoted cells are left out" in bundle.notes
    assert [text for _, text in read_texts(file, "text")] == [text for text, _ in TEXTS]
    file.write_text('label,text\nx, "so" he said\ny, no\n')  # a quotation mark as text
    assert [text for _, text in read_texts(file, "text")] == [' "so" he said', " no"]


def test_a_text_that_stands_for_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\n" + "nan,x\nfine,y\nN/A,y\ndull,x\n")
    assert "text: 2 texts are nan or alike, which often stands for a missing text" in opened(tmp_path / "t.csv").notes


def test_masks_beside_their_images_are_no_images_of_a_class(tmp_path: Path) -> None:
    for k, name in enumerate(("benign", "normal")):
        for i in range(4):
            picture(tmp_path / name / f"{name} ({i}).png", 40 * k + i)
            picture(tmp_path / name / f"{name} ({i})_mask.png", 255)
    picture(tmp_path / "benign" / "benign (0)_mask_1.png", 255)
    listing = list_images(tmp_path)
    assert listing.counts("train") == [4, 4]
    assert "9 images not used: masks, as benign/benign (0)_mask.png of benign/benign (0).png" in listing.notes
    for i in range(5):
        picture(tmp_path / "normal" / f"more{i}.png", i)
    assert list_images(tmp_path).counts("train") == [4, 13]  # too few have one: they may be pictures of masks


def test_images_with_a_text_each_are_no_text(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / f"{i}.jpg", i)
        (tmp_path / f"{i}.txt").write_text("0 .5 .5 .1 .1\n")
    with pytest.raises(InputError, match="6 images directly in it and no class folders"):
        opened(tmp_path)
    for i in range(6, 20):
        (tmp_path / f"{i}.txt").write_text(f"a story, number {i}\n" * 9)
    assert "6 files not used: .jpg 6" in opened(tmp_path).notes


def test_labels_beside_the_images_are_those_of_train(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for i in range(4):
            picture(tmp_path / split / f"{i}.png", i)
        (tmp_path / split / "metadata.csv").write_text("file_name,label\n" + "".join(f"{i}.png,x\n" for i in range(4)))
    with pytest.raises(InputError, match="images without class folders") as refusal:
        list_images(tmp_path)
    assert refusal.value.hint == f"--data {tmp_path}/train/metadata.csv reads the labels in it"


def test_an_encoding_is_that_of_tables_of_images_and_of_texts_to_predict(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"{i}.png", i)
    table = tmp_path / "t.csv"
    table.write_bytes(
        b"image,label\n" + "".join(f"{i}.png,{'кошка' if i % 2 else 'пёс'}\n" for i in range(4)).encode("koi8-r")
    )
    assert opened(table, encoding="koi8-r").spec.classes == ("кошка", "пёс")
    texts = tmp_path / "t.txt"
    texts.write_bytes("кошка\n".encode("koi8-r"))
    assert [text for _, text in read_texts(texts, "text", Reading(encoding="koi8-r"))] == ["кошка"]
