"""More situations of people's own data, as small files built here: read right, noted, or refused by name."""

from __future__ import annotations

import bz2
import csv
import json
import lzma
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bigmodel_cli.commands.arguments.input_files import expand_inputs, reading
from bigmodel_cli.commands.arguments.recipe_layers import Known, resolve_data_path
from bigmodel_cli.commands.data import inspect
from bigmodel_cli.commands.inspection.text import show_text
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.fasttext import without_labels
from bigmodel_cli.core.readers.text_samples import AS_FOUND, Reading, read_texts
from bigmodel_cli.core.recipe import DataSection
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.tokenizers.tokens import encode_padded
from bigmodel_cli.data.targets import MULTI_LABEL
from bigmodel_cli.data.user_data.image_discovery import list_images
from bigmodel_cli.data.user_path import source_for
from bigmodel_cli.engine.build.data import conflicting_labels_note, load_data, shared_samples_note, train_and_val

TEXTS = [(f"a {'fine' if i % 2 else 'dull'} film number {i}", "pos" if i % 2 else "neg") for i in range(12)]


def picture(path: Path, shade: int, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path, **options)


def classes(root: Path, names: tuple[str, ...] = ("a", "b"), count: int = 3, suffix: str = ".png") -> Path:
    for k, name in enumerate(names):
        for i in range(count):
            picture(root / name / f"{k}{i}{suffix}", 40 * k + 5 * i)
    return root


def write(path: Path, rows: list[list[Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows(rows)
    return path


def fasttext(path: Path, rows: list[tuple[str, str]], more: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"__label__{label} {more}{text}\n" for text, label in rows))
    return path


def opened(path: Path, task: str | None = None, **options: Any) -> Any:
    name = source_for(path, options.get("columns"), task)
    assert name is not None
    return load_data(DataSection(name=name, path=str(path), task=task, **options))


def labels(bundle: Any, split: str = "train") -> list[str]:
    return [bundle.spec.classes[i] for i in bundle.load[split]().labels.tolist()]


# ---- fastText


def test_fasttext_files_are_labelled_texts(tmp_path: Path) -> None:
    bundle = opened(fasttext(tmp_path / "t.txt", TEXTS))
    assert labels(bundle) == [label for _, label in TEXTS]
    assert not any(word.startswith("__label__") for word in bundle.spec.vocabulary)
    assert any("__label__" in note for note in bundle.notes)
    texts = [text for _, text in read_texts(tmp_path / "t.txt", "text")]
    assert texts == [text for text, _ in TEXTS]  # predict does not see the answer


def test_fasttext_files_of_splits_and_of_several_labels(tmp_path: Path) -> None:
    for split, rows in (("train", TEXTS[:8]), ("test", TEXTS[8:])):
        fasttext(tmp_path / "both" / f"{split}.txt", rows)
    bundle = opened(tmp_path / "both")
    assert (len(bundle.load["train"]()), len(bundle.load["test"]())) == (8, 4)
    several = fasttext(tmp_path / "several.txt", TEXTS, "__label__film ")
    with pytest.raises(InputError, match="2 labels"):
        opened(several)
    bundle = opened(several, "multi_label_classification")
    assert bundle.spec.classes == ("film", "neg", "pos")
    assert bundle.load["train"]().label_values.tolist()[:2] == [[1, 1, 0], [1, 0, 1]]


def test_lines_of_fasttext_from_standard_input_are_read_as_its_files() -> None:
    assert list(without_labels(iter(["__label__a one", "", " __label__b __label__c two"]))) == ["one", "", "two"]
    assert list(without_labels(iter(["__label__a one", "two"]))) == ["__label__a one", "two"]


def test_a_fasttext_line_without_a_label_is_refused_and_an_ordinary_text_is_no_fasttext(tmp_path: Path) -> None:
    file = fasttext(tmp_path / "t.txt", TEXTS * 3)
    file.write_text(file.read_text() + "a line alone\n")
    with pytest.raises(InputError, match=r"t\.txt:37: no label"):
        opened(file)
    (tmp_path / "plain.txt").write_text("once upon a time\n__label__ was a word\n" * 20)
    assert source_for(tmp_path / "plain.txt") == "text_files"


# ---- the same samples in two splits


def test_images_of_train_in_val_are_said_whatever_their_names(tmp_path: Path) -> None:
    root = tmp_path / "p"
    classes(root / "train")
    for file in sorted((root / "train").rglob("*.png")):
        target = root / "val" / file.parent.name / f"copy{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    picture(root / "val" / "a" / "own.png", 250)
    assert "val: 6 of 7 images are in train too, byte for byte" in opened(root, size=8).notes
    shutil.rmtree(root / "val")
    for k, name in enumerate("ab"):
        picture(root / "val" / name / "x.png", 200 + k)
    assert not any("in train too" in note for note in opened(root, size=8).notes)


def test_texts_of_train_in_val_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, rows in (("train", TEXTS), ("val", [*TEXTS[:3], ("another", "pos")])):
        write(tmp_path / f"{split}.csv", [["text", "label"], *map(list, rows)])
    show_text(tmp_path, "labelled_file", AS_FOUND, json=True)
    assert json.loads(capsys.readouterr().out)["notes"][-1].startswith("val: 3 of 4 samples are in train too")
    bundle = opened(tmp_path)
    note = shared_samples_note(bundle, *train_and_val(bundle, DataSection(name="labelled_file")))
    assert note is not None and note.startswith("val: 3 of 4 samples are in train too")
    write(tmp_path / "val.csv", [["text", "label"], ["another", "pos"], ["one more", "neg"]])
    bundle = opened(tmp_path)
    assert shared_samples_note(bundle, *train_and_val(bundle, DataSection(name="labelled_file"))) is None


def test_the_same_text_under_two_labels_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["text", "label"], *map(list, TEXTS * 2), ["odd one", "pos"], ["odd one", "pos"], ["odd one", "neg"]]
    write(tmp_path / "train.csv", rows)
    write(tmp_path / "val.csv", rows[:5])
    show_text(tmp_path, "labelled_file", AS_FOUND, json=True)
    notes = json.loads(capsys.readouterr().out)["notes"]
    n = len(rows) - 1
    example = f"train[{n - 3}] odd one (pos) and train[{n - 1}] odd one (neg)"
    assert [note for note in notes if "several labels" in note] == [
        f"train: 3 of {n} samples occur under several labels, as {example}"
    ]


def test_the_same_picture_under_two_labels_is_said_also_where_labels_are_several(tmp_path: Path) -> None:
    root = classes(tmp_path / "p")
    file = next((root / "a").glob("*.png"))
    shutil.copy(file, root / "b" / "copy.png")
    section, train = DataSection(name="image_folder"), opened(root, size=8).load["train"]()
    note = conflicting_labels_note(train, "train", ("a", "b"))
    assert note is not None and note.startswith(f"train: 2 of {len(train)} samples occur under several labels, as")
    assert f"a/{file.name} (a) and b/copy.png (b)" in note
    part = conflicting_labels_note(train_and_val(opened(root, size=8), section)[0], "train", ("a", "b"))
    assert part is None or part.startswith("train: 2 of")
    texts = write(tmp_path / "t.csv", [["text", "a", "b"], *(["same", i % 2, 0] for i in range(4)), ["other", 1, 1]])
    bundle = data.get("text_targets")(tmp_path, task=MULTI_LABEL, path=str(texts), columns={"label": "a+b"})
    note = conflicting_labels_note(bundle.load["train"](), "train", bundle.spec.classes)
    assert note == "train: 4 of 5 samples occur under several labels, as train[0] same and train[1] same"


# ---- tables


def test_a_column_twice_is_refused_and_in_another_case_is_not(tmp_path: Path) -> None:
    rows = [[text, label, "x"] for text, label in TEXTS]
    with pytest.raises(InputError, match="columns 2 and 3 are both called 'label'"):
        opened(write(tmp_path / "t.csv", [["text", "label", "label"], *rows]))
    bundle = opened(write(tmp_path / "t.csv", [["text", "label", "Label"], *rows]))
    assert set(labels(bundle)) == {"pos", "neg"} and "t.csv: columns not used: Label" in bundle.notes


@pytest.mark.parametrize(("suffix", "pack"), [(".bz2", bz2.compress), (".xz", lzma.compress)])
def test_compressed_tables(suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    plain = write(tmp_path / "t.csv", [["text", "label"], *map(list, TEXTS)])
    packed = tmp_path / f"t.csv{suffix}"
    packed.write_bytes(pack(plain.read_bytes()))
    assert labels(opened(packed)) == labels(opened(plain))
    packed.write_bytes(pack(plain.read_bytes())[:-9])
    with pytest.raises(InputError):
        opened(packed)


@pytest.mark.parametrize("head", [b"\x1f\x8b\x08\0", b"PK\3\4\x14\0", b"PAR1\x15", b"%PDF-1.7"])
def test_what_is_no_text_is_refused_by_what_it_is(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(head + b"\0\1\2\3" * 50)
    with pytest.raises(InputError, match="its content is"):
        opened(tmp_path / "t.csv")


def test_a_text_may_begin_as_another_kind_of_file_does(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("GIF89a is a format.\nPAR1 and BZh are others.\n" * 20)
    assert opened(tmp_path / "t.txt").notes == []


def test_nested_json_by_dotted_columns(tmp_path: Path) -> None:
    rows = [{"data": {"text": text}, "meta": {"label": label, "n": [1]}} for text, label in TEXTS]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bundle = opened(tmp_path / "t.jsonl", columns={"text": "data.text", "label": "meta.label"})
    assert labels(bundle) == [label for _, label in TEXTS]
    with pytest.raises(InputError, match=r"data\.text, meta\.label"):
        opened(tmp_path / "t.jsonl")


def test_the_next_command_reads_a_table_as_it_was_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "my reviews.csv", [["body", "kind"], *map(list, TEXTS)])
    show_text(table, "labelled_file", Reading({"text": "body", "label": "kind"}, "koi8-r"), json=False)
    flags = f"--data '{table}' --columns text=body,label=kind --encoding koi8-r"
    assert f"next: bigmodel train text-cnn {flags}" in capsys.readouterr().out


def test_several_labels_and_numbers_are_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["a film", "Drama|War", 3.5], ["one more", "", 4], ["the last", "War", 5.5]]
    table = write(tmp_path / "films.csv", [["title", "genres", "stars"], *rows])
    inspect(str(table), columns="text=title,label=genres", task=MULTI_LABEL, json=True)
    found = json.loads(capsys.readouterr().out)
    shares = {"Drama": {"samples": 1, "share": 1 / 3}, "War": {"samples": 2, "share": 2 / 3}}
    assert (found["read as"], found["columns"], found["train samples"]) == ("text_targets", shares, 3)
    assert "1 sample without any label" in found["notes"]
    inspect(str(table), columns="text=title,label=stars", task="regression")
    said = capsys.readouterr().out
    assert "min 3.5, median 4, max 5.5" in said and said.rstrip().endswith("label=stars --task regression")
    with pytest.raises(InputError, match=r"films.csv:2: genres is .*; expected a number"):
        inspect(str(table), columns="text=title,label=genres", task="regression")


def test_a_table_is_read_by_the_columns_of_training_or_by_the_usual_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = Known(columns={"text": "body", "label": "kind"})
    alike = write(tmp_path / "alike.csv", [["kind", "n", "body"], *[[label, 1, text] for text, label in TEXTS]])
    usual = write(tmp_path / "usual.csv", [["text", "label"], *map(list, TEXTS)])
    found = resolve_data_path(str(alike), None, known)
    assert found == {"name": "labelled_file", "path": str(alike), "columns": known.columns}
    assert labels(load_data(DataSection(**found))) == [label for _, label in TEXTS]
    assert not capsys.readouterr().err
    other = resolve_data_path(str(usual), None, known)
    assert other == {"name": "labelled_file", "path": str(usual), "columns": None}
    assert "without the columns of the training data; read by the usual names" in capsys.readouterr().err
    assert "columns" not in (resolve_data_path(str(usual)) or {}), "those of a recipe file stay"


def test_one_hot_columns_are_one_label(tmp_path: Path) -> None:
    rows = [[text, int(label == "pos"), int(label == "neg")] for text, label in TEXTS]
    table = write(tmp_path / "t.csv", [["text", "pos", "neg"], *rows])
    given = {"text": "text", "label": "pos+neg"}
    assert labels(opened(table, columns=given)) == [label for _, label in TEXTS]
    for wrong in ([1, 1], [0, 0]):
        write(table, [["text", "pos", "neg"], *rows, ["both or none", *wrong]])
        with pytest.raises(InputError, match=r"t\.csv:14: . of the columns pos, neg are 1"):
            opened(table, columns=given)


def test_a_header_in_the_middle_is_no_row(tmp_path: Path) -> None:
    rows = [list(row) for row in TEXTS]
    bundle = opened(write(tmp_path / "t.csv", [["text", "label"], *rows[:5], ["text", "label"], *rows[5:]]))
    assert len(bundle.load["train"]()) == len(TEXTS)
    assert "t.csv: 1 row not used: the header again" in bundle.notes


def test_a_class_that_no_training_sample_has_is_said(tmp_path: Path) -> None:
    rows = [*[(*row, "train") for row in TEXTS], ("odd one", "other", "test")]
    said = "no training sample has the class other"
    assert said in opened(write(tmp_path / "t.csv", [["text", "label", "split"], *map(list, rows)])).notes
    for split in ("train", "test"):
        fasttext(tmp_path / "f" / f"{split}.txt", [(text, label) for text, label, of in rows if of == split])
    assert said in opened(tmp_path / "f").notes


def test_two_encodings_in_one_file_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", [["text", "label"], *([f"{text} naïve", label] for text, label in TEXTS)])
    file.write_bytes(file.read_bytes() + b"caf\xe9,pos\r\n")
    with pytest.raises(InputError, match="UTF-8 up to byte"):
        opened(file)
    assert len(opened(file, encoding="cp1252").load["train"]()) == len(TEXTS) + 1


# ---- plain text


def test_files_called_as_splits_are_splits_of_a_language_model(tmp_path: Path) -> None:
    parts = {
        "ptb.train.txt": "abc " * 200,
        "ptb.valid.txt": "def " * 100,
        "ptb.test.txt": "ghi " * 50,
        "README.md": "?",
    }
    for name, text in parts.items():
        (tmp_path / name).write_text(text)
    bundle = opened(tmp_path, tokenizer="byte")
    sizes = {split: len(load().tokens) for split, load in bundle.load.items()}
    assert sizes == {"train": 801, "val": 401, "test": 201}  # each with an end
    assert any("README.md" in note and "not used" in note for note in bundle.notes)
    (tmp_path / "ptb.valid.txt").unlink()
    bundle = opened(tmp_path, tokenizer="byte")
    assert set(bundle.load) == {"train", "val", "test"} and len(bundle.load["test"]().tokens) == 201
    assert len(bundle.load["train"]().tokens) + len(bundle.load["val"]().tokens) == 802


@pytest.mark.parametrize(
    ("line", "said"), [("ham\tsee you {}\n", "2 cells between tabs"), ("a/{}.png 0\n", "begins with an image's name")]
)
def test_a_plain_text_that_is_a_table_is_said(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("".join(line.format(i) for i in range(40)))
    assert any(said in note for note in opened(tmp_path / "t.txt").notes)


# ---- images


def test_what_systems_add_is_no_class(tmp_path: Path) -> None:
    classes(tmp_path)
    for folder in ("System Volume Information", "$RECYCLE.BIN", "a/@eaDir", "__MACOSX"):
        picture(tmp_path / folder / "thumb.png", 9)
    for file in ("a/thumbs.db", "Desktop.ini", "a/._00.png"):
        (tmp_path / file).write_bytes(b"\0")
    listing = list_images(tmp_path)
    assert listing.classes == ("a", "b") and listing.counts("train") == [3, 3]


def _yolo(root: Path) -> None:
    for split in ("train", "val"):
        classes(root / "images", (split,))
        for i in range(3):
            path = root / "labels" / split / f"{['train', 'val'].index(split)}{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("0 0.5 0.5 0.1 0.1\n")


def _masks(root: Path) -> None:
    classes(root, ("images",))
    for file in (root / "images").iterdir():
        picture(root / "masks" / file.name, 1)


@pytest.mark.parametrize("make", [_yolo, _masks])
def test_boxes_and_masks_are_not_classes(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match="object detection or masks"):
        opened(tmp_path)


def test_two_classes_may_be_called_images_and_masks(tmp_path: Path) -> None:
    assert list_images(classes(tmp_path, ("images", "masks"))).classes == ("images", "masks")


def test_a_table_of_labels_is_named_before_an_example_of_an_answer(tmp_path: Path) -> None:
    classes(tmp_path, ("train",))
    write(tmp_path / "sample_submission.csv", [["id", "x"], ["00", 1]])
    write(tmp_path / "labels.csv", [["id", "breed"], ["00", "pug"]])
    with pytest.raises(InputError) as refused:
        list_images(tmp_path)
    assert f"--data {tmp_path / 'labels.csv'} " in str(refused.value.hint)


def test_names_in_tables_in_another_case_and_addresses(tmp_path: Path) -> None:
    classes(tmp_path / "pics", suffix=".PNG")
    files = sorted((tmp_path / "pics").rglob("*.PNG"))
    rows = [[f"C:\\pics\\{f.parent.name}\\{f.stem}.png", f.parent.name] for f in files]
    listing = list_images(write(tmp_path / "t.csv", [["image", "label"], *rows]))
    assert [item.file for item in listing.splits["train"]] == [str(f) for f in files]
    with pytest.raises(InputError, match="is an address"):
        list_images(write(tmp_path / "t.csv", [["image", "label"], ["https://a.org/0.jpg", "x"]]))


@pytest.mark.skipif(os.name == "nt", reason="one file system")
def test_one_name_in_two_cases_is_not_guessed(tmp_path: Path) -> None:
    for name in ("x.PNG", "X.png"):
        picture(tmp_path / name, 1)
    with pytest.raises(InputError, match=r"2 files are called x\.Png"):
        list_images(write(tmp_path / "t.csv", [["image", "label"], ["x.Png", "a"]]))


@pytest.mark.parametrize(("suffix", "frames"), [(".gif", 2), (".tif", 3), (".webp", 2), (".png", 1)])
def test_several_frames_are_said(suffix: str, frames: int, tmp_path: Path) -> None:
    classes(tmp_path)
    more = [Image.new("L", (8, 8), 90 * i) for i in range(1, frames)]
    options = {"save_all": True, "append_images": more} if more else {}
    picture(tmp_path / "a" / f"several{suffix}", 3, **options)
    said = [note for note in opened(tmp_path, size=8).notes if "several frames" in note]
    assert said == ([f"1 of 7 images looked at have several frames or pages, of which the first is read: "
                     f"a/several{suffix} has {frames}"] if more else [])  # fmt: skip


def test_folders_within_classes_links_to_themselves_and_blanks_around_names(tmp_path: Path) -> None:
    for name in ("animal /cat", "animal /dog", "plant/oak", "plant/rose"):
        picture(tmp_path / name / "x.png", len(name))
    (tmp_path / "plant" / "self").symlink_to("self")
    listing = list_images(tmp_path)
    assert listing.classes == ("animal", "plant")
    said = " ".join(listing.notes)
    assert all(
        word in said for word in ("animal /cat/", "1 link not followed", "'animal ' is read as the class 'animal'")
    )


def test_a_zip_with_back_slashes_in_its_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for file in sorted(classes(tmp_path / "p").rglob("*.png")):
            member = zipfile.ZipInfo("x")
            member.filename = f"p\\{file.parent.name}\\{file.name}"
            archive.writestr(member, file.read_bytes())
    assert list_images(tmp_path / "p.zip").counts("train") == [3, 3]


def test_predict_reads_other_encodings_as_training_does_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_bytes("un café\nune fête\n".encode("latin-1"))
    assert [text for _, text in read_texts(tmp_path / "t.txt", "text")] == ["un café", "une fête"]
    table = write(tmp_path / "t.csv", [["label", "text"], ["x", "a; b"]], delimiter=";")
    assert [text for _, text in read_texts(table, "text")] == ["a; b"]
    files = expand_inputs([tmp_path / "t.txt", table], "text")
    said = " ".join(capsys.readouterr().err.split())
    assert len(files) == 2 and "read as cp1252" in said and "separated by semicolons" in said


def test_a_file_is_one_text_for_a_model_of_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label, word in (("good", "fine"), ("bad", "dull")):
        (tmp_path / "mails" / label).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "mails" / label / f"{i}.txt").write_text(f"Dear {i},\n\na {word} film\n")
    values = {"model": {"name": "text-cnn"}, "data": {"name": "text_folders", "path": str(tmp_path / "mails")}}
    recipe = resolve([Layer("test", values)]).recipe
    how, file = reading(None, None, recipe), tmp_path / "mails/bad/0.txt"
    (predicted,) = read_texts(file, "text", how)
    assert predicted == (str(file), "Dear 0,\n\na dull film\n")
    train, val = train_and_val(bundle := load_data(recipe.data, None, recipe.task), recipe.data)
    assert len(train) + len(val) == 8, "files, not lines"
    spec: Any = bundle.spec
    rows = {str(train.gather(torch.tensor([i]))["tokens"].tolist()) for i in range(len(train))}
    rows |= {str(val.gather(torch.tensor([i]))["tokens"].tolist()) for i in range(len(val))}
    assert str(encode_padded([predicted[1]], spec, framed=True).tolist()) in rows, "as training encodes the file"
    expand_inputs([file], "text", how)
    assert "each file is one text, as in training" in " ".join(capsys.readouterr().err.split())
