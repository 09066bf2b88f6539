"""Class folders, tables and tars of real files: what is read, and what each broken layout is told."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.data.user_data.image_discovery import list_images
from bigmodel_cli.data.user_data.image_folder import image_folder

COLOURS = {"cat": "red", "dog": "green", "frog": "blue"}


def put(path: Path, colour: str = "red", size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def folders(root: Path, **splits: dict[str, int]) -> Path:
    """root/split/class/i.png with the counts given; split "" puts the classes into root."""
    for split, classes in splits.items():
        for name, count in classes.items():
            (root / split.strip("_") / name).mkdir(parents=True)
            for i in range(count):
                put(root / split.strip("_") / name / f"{i}.png", COLOURS.get(name, "white"))
    return root


def bundle(path: Path, **options: Any) -> Any:
    found = image_folder(path, path=str(path), size=28, **options)
    if found.problem is not None:
        raise found.problem
    return found


def test_train_val_test_folders(tmp_path: Path) -> None:
    folders(tmp_path, train={"cat": 3, "dog": 2}, val={"dog": 1, "cat": 1}, test={"dog": 2})
    found = bundle(tmp_path)
    assert sorted(found.load) == ["test", "train", "val"]
    assert found.spec.classes == ("cat", "dog") and found.spec.square == 32
    train = found.load["train"]()
    batch = train.gather(torch.arange(len(train)))
    assert batch["image"].shape == (5, 3, 32, 32) and batch["label"].tolist() == [0, 0, 0, 1, 1]
    assert batch["image"][0, :, 0, 0].tolist() == [255, 0, 0] and batch["image"][4, :, 0, 0].tolist() == [0, 128, 0]
    assert train.name(4) == "train/dog/1.png"
    assert found.load["test"]().gather(torch.tensor([0]))["label"].tolist() == [1]


def test_one_level_of_classes_has_no_test_split(tmp_path: Path) -> None:
    found = bundle(folders(tmp_path, _={"cat": 4, "dog": 4}))
    assert list(found.load) == ["train"]  # val is carved by seed; test is only where there is a folder


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    folders(tmp_path, train={"cat": 2, "dog": 2}, val={"cat": 1, "dog": 1})
    for junk in (".ipynb_checkpoints/cat", "train/.ipynb_checkpoints", "train/__MACOSX", "train/cat/.thumbs"):
        put(tmp_path / junk / "x.png")
    for junk in ("train/.DS_Store", "train/cat/._0.png", "train/dog/Thumbs.db", "train/cat/notes.txt"):
        (tmp_path / junk).write_bytes(b"junk")
    listing = list_images(tmp_path)
    assert listing.classes == ("cat", "dog") and listing.counts("train") == [2, 2]


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "val lacks a class": (lambda p: folders(p, train={"a": 1, "b": 1, "c": 1}, val={"a": 1, "b": 1}), "val has no c;"),
    "val has another": (lambda p: folders(p, train={"a": 1, "b": 1}, val={"a": 1, "c": 1}), "no b, c not in train"),
    "names differ in case": (lambda p: folders(p, train={"Cat": 1, "b": 1}, val={"cat": 1, "b": 1}), "no Cat, cat not"),
    "an empty class": (lambda p: folders(p, train={"a": 1, "b": 0}, val={"a": 1, "b": 1}), "/train/b: an empty class"),
    "only other files": (
        lambda p: (folders(p, _={"a": 1, "b": 0}) / "b" / "readme.txt").write_text("x"),
        "only 1 other files: .txt 1",
    ),
    "no train": (lambda p: folders(p, val={"a": 1, "b": 1}), "val/ but no train/"),
    "one class": (lambda p: folders(p, _={"a": 3}), "only one class (a)"),
    "flat": (lambda p: [put(p / f"{i}.png") for i in range(3)], "3 images directly in it and no class folders"),
    "flat train": (lambda p: [put(p / s / "0.png") for s in ("train", "val")], "train: 1 images directly in it"),
    "loose images": (lambda p: put(folders(p, _={"a": 1, "b": 1}) / "x.png"), "1 images beside"),
    "empty": (lambda p: p, "no class folders in it"),
    "two vals": (lambda p: folders(p, train={"a": 1, "b": 1}, val={"a": 1}, valid={"a": 1}), "both val/ and valid/"),
    "test has another": (lambda p: folders(p, train={"a": 1, "b": 1}, test={"c": 1}), "test has c not in train"),
    "dangling link": (
        lambda p: (folders(p, _={"a": 1, "b": 1}) / "a" / "link.png").symlink_to(p / "gone.png"),
        "link.png: No such file",
    ),
    "not there": (lambda p: p.rmdir(), "no such folder or file"),
}


@pytest.mark.parametrize("layout", BROKEN)
def test_broken_layouts_are_named(layout: str, tmp_path: Path) -> None:
    make, words = BROKEN[layout]
    root = tmp_path / "photos"
    root.mkdir()
    make(root)
    with pytest.raises(InputError) as caught:
        bundle(root)
    assert words in f"{caught.value.what}; {caught.value.expected}"


def test_the_command_says_so_and_leaves_nothing(tmp_path: Path, run_cli: Any) -> None:
    folders(tmp_path / "photos", train={"a": 2, "b": 2}, val={"a": 1, "c": 1})
    done = run_cli("train", "mlp", "--data", "./photos")
    assert done.returncode == 2 and "val has no b, c not in train" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_more_odd_folders_that_are_fine(tmp_path: Path) -> None:
    root = folders(tmp_path, Train={"a": 2, "b": 2}, Validation={"a": 1, "b": 1})
    put(root / "Train" / "a" / "deeper" / "still.png")
    put(root / "Train" / "b" / "UPPER.JPG")
    put(root / "Train" / "b" / "naïve ☕\t.png")
    (root / "Train" / "linked").symlink_to(root / "Train" / "a", target_is_directory=True)
    (root / "Validation" / "linked").symlink_to(root / "Validation" / "a", target_is_directory=True)
    (root / "annotations").mkdir()
    listing = list_images(root)
    assert listing.classes == ("a", "b", "linked") and listing.counts("train") == [3, 4, 3]
    assert any("not used: annotations/" in note for note in listing.notes)


def test_a_table_of_paths(tmp_path: Path) -> None:
    for name in ("x/1.png", "x/2.png", "y/3.png", "z 4.png"):
        put(tmp_path / name)
    table = tmp_path / "list.csv"
    table.write_text('path,label,split\nx/1.png,b,train\nx/2.png,a,\ny/3.png,b,valid\n"z 4.png",a,val\n\n')
    listing = list_images(table)
    assert listing.classes == ("a", "b")
    assert [i.name for i in listing.splits["train"]] == ["x/2.png", "x/1.png"]
    assert [i.label for i in listing.splits["val"]] == [0, 1]
    tabs = tmp_path / "list.tsv"
    tabs.write_text("label\tpath\nb\tx/1.png\na\tx/2.png\n")
    assert list_images(tabs).counts("train") == [1, 1]
    other = tmp_path / "other.csv"
    other.write_text("ID,File,Species\n1,x/1.png,b\n2,x/2.png,a\n")
    assert list_images(other, {"image": "File", "label": "species"}).classes == ("a", "b")
    with pytest.raises(InputError, match=r":1: no column 'kind'; one of File, ID, Species"):
        list_images(other, {"image": "file", "label": "kind"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("file,klass,kind\nx.png,a,b\n", ":1: no column label; it has file, klass, kind"),
        ("path,label\nx.png,a\nnone.png,b\n", ":3: no file none.png"),
        ("path,label\nx.png,\n", ":2: no label"),
        ("path,label,split\nx.png,a,extra\n", ":2: split 'extra'"),
        ("path,label,split\nx.png,a,val\n", "val/ but no train/"),
        ("path,label\nx.png,a\n", "only one class"),
        ("path,label\n\xff\xfe", ":2: 1 cell; the header has 2"),
    ],
)
def test_broken_tables_are_named(text: str, words: str, tmp_path: Path) -> None:
    put(tmp_path / "x.png")
    (tmp_path / "list.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        list_images(tmp_path / "list.csv").check_trainable()
    assert any(w in f"{caught.value.what}; {caught.value.expected}" for w in words.split("|"))


def tar_of(path: Path, names: list[str], kind: str = "w") -> Path:
    with tarfile.open(path, kind) as tar:  # type: ignore[call-overload]
        for name in names:
            out = io.BytesIO()
            Image.new("RGB", (20, 20), COLOURS.get(Path(name).parent.name, "white")).save(out, "PNG")
            member = tarfile.TarInfo(name)
            member.size = len(out.getvalue())
            tar.addfile(member, io.BytesIO(out.getvalue()))
    return path


@pytest.mark.parametrize(("suffix", "kind"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tar.xz", "w:xz")])
@pytest.mark.parametrize("top", ["", "./", "photos/"])
def test_a_tar_is_read_in_place(suffix: str, kind: str, top: str, tmp_path: Path) -> None:
    names = ["train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png", "train/dog/._2.png"]
    path = tar_of(tmp_path / f"photos{suffix}", [top + name for name in names], kind)
    train = bundle(path).load["train"]()
    batch = train.gather(torch.arange(2))
    assert batch["label"].tolist() == [0, 1] and batch["image"][1, :, 0, 0].tolist() == [0, 128, 0]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing was unpacked


def test_a_tar_of_classes_alone(tmp_path: Path) -> None:
    assert list(bundle(tar_of(tmp_path / "p.tar", ["cat/1.png", "dog/1.png"])).load) == ["train"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat/1.png", "../dog/1.png"], "a member called ../dog/1.png"),
        (["cat/1.png", "/dog/1.png"], "a member called /dog/1.png"),
        (["cat/1.png", "loose.png"], "1 images beside the class folders"),
        (["val/a/1.png", "val/b/1.png", "test/a/1.png"], "no train/"),
        ([], "no images in it"),
    ],
)
def test_broken_tars_are_named(names: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        list_images(tar_of(tmp_path / "p.tar", names)).check_trainable()
    assert words in caught.value.line


def test_a_cut_tar_is_named(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "p.tar.gz", ["cat/1.png", "dog/1.png"], "w:gz")
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(InputError, match="damaged or cut off"):
        list_images(path)


def test_eval_and_predict_see_the_same_pixels(tmp_path: Path, run_cli: Any) -> None:
    """Train on photos of odd sizes, then ask eval (from the folder) and predict (from the files) for the same ones."""
    root = folders(tmp_path / "photos", train={"cat": 6, "dog": 6}, val={"cat": 2, "dog": 2})
    for i, size in enumerate([(90, 50), (50, 90), (300, 200), (33, 33)]):
        put(root / "val" / ("cat", "dog")[i % 2] / f"{i % 2}.png", ("red", "green")[i % 2], size)
    done = run_cli("train", "mlp", "--data", root, "--set", "data.size=24", "--epochs", 2, "--out", "r")
    assert done.returncode == 0, done.stderr
    probabilities = {}
    done = run_cli("predict", "r", *sorted((root / "val").rglob("*.png")), "--json", "--top", 2)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        row = json.loads(line)
        probabilities[Path(row["file"]).relative_to(root).as_posix()] = {
            t["class"]: t["probability"] for t in row["top"]
        }
    from bigmodel_cli.engine.build.data import load_data, load_split
    from bigmodel_cli.engine.build.load import load_trained

    trained = load_trained(tmp_path / "r")
    source = load_split(load_data(trained.recipe.data), trained.recipe.data, "val")
    with torch.inference_mode():
        for i in range(len(source)):
            raw = source.gather(torch.tensor([i]))
            seen = trained.task.prepare(raw)["image"]
            file = root / source.name(i)
            assert torch.equal(seen, trained.task.prepare(next(trained.task.read_file(file))[1])["image"])
            p = trained.model(seen).softmax(1)[0]
            assert p[0].item() == pytest.approx(probabilities[source.name(i)]["cat"], abs=1e-6)


def test_the_recipe_for_photos_trains(tmp_path: Path, run_cli: Any) -> None:
    folders(tmp_path / "photos", train={"cat": 6, "dog": 3}, val={"cat": 2, "dog": 2})
    recipe = "recipes/image/photos-resnet18.yaml"
    done = run_cli("train", recipe, "--set", "data.size=32", "--max-steps", 2, "--batch-size", 4, "--out", "r")
    assert done.returncode == 0, done.stderr
    assert "decoding train" in done.stderr and "6 of 'cat' (67%), 3 of 'dog'" in done.stderr
    again = run_cli("train", recipe, "--data", tmp_path / "photos", "--set", "data.size=32", "--max-steps", 1)
    assert again.returncode == 0 and "decoding" not in again.stderr


@pytest.mark.parametrize(("size", "crop"), [(28, 0.875), (33, 0.9), (24, 1.0)])
def test_the_stated_preprocessing_is_what_is_done(size: int, crop: float, tmp_path: Path) -> None:
    """Another program that follows preprocess.json with Pillow and numpy alone gets the model's input."""
    import numpy as np

    from bigmodel_cli.core.registry import augments, losses
    from bigmodel_cli.tasks.image_classification import ImageClassification

    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    image = Image.fromarray(coarse, "RGBA").resize((91, 57), Image.Resampling.BICUBIC)
    tags = Image.Exif()
    tags[274] = 6
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        image.save(tmp_path / "photos" / name / "x.png", exif=tags)
    found = image_folder(tmp_path, path=str(tmp_path / "photos"), size=size, crop=crop)
    task = ImageClassification(found.spec, losses.get("cross_entropy")(), augments.get("none")())
    train = found.load["train"]()
    task = task.fit_spec(train)
    ours = task.prepare(train.gather(torch.tensor([0])))["image"][0]
    steps = task.preprocessing()
    assert steps["transparency"] == "over white" and steps["orientation"] == "EXIF applied"
    upright = image.transpose(Image.Transpose.ROTATE_270)
    flat = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert(steps["mode"])
    short = min(flat.size)
    left, top = (flat.width - short) // 2, (flat.height - short) // 2
    square = steps["resize_square"]
    flat = flat.crop((left, top, left + short, top + short))
    flat = flat.resize((square["width"], square["height"]), Image.Resampling.BILINEAR)
    cut = (square["width"] - steps["crop"]["width"]) // 2
    flat = flat.crop((cut, cut, cut + steps["crop"]["width"], cut + steps["crop"]["height"]))
    assert flat.size == (size, size) and "resize" not in steps
    theirs = np.asarray(flat, np.float32) * steps["scale"]
    theirs = ((theirs - steps["mean"]) / steps["std"]).transpose(2, 0, 1)
    assert np.abs(ours.numpy() - theirs).max() * min(steps["std"]) <= 1.01 / 255  # one grey level of rounding


def test_fine_tuned_from_whole_images_predict_still_sees_what_eval_does(tmp_path: Path, run_cli: Any) -> None:
    """A model of 8x8 digits, fine-tuned on photos: square, crop and size come from different places."""
    root = folders(tmp_path / "photos", train={"cat": 6, "dog": 6}, val={"cat": 2, "dog": 2})
    put(root / "val" / "cat" / "0.png", "red", (300, 120))
    assert run_cli("train", "mlp", "--data", "digits", "--max-steps", 2, "--out", "d").returncode == 0
    done = run_cli(
        "finetune", "--from", "d", "--data", root, "--set", "data.channels=1", "--max-steps", 2, "--out", "r"
    )
    assert done.returncode == 0, done.stderr
    from bigmodel_cli.engine.build.data import load_data, load_split
    from bigmodel_cli.engine.build.load import load_trained

    trained = load_trained(tmp_path / "r")
    assert trained.task.spec.height == 8 and trained.task.spec.square == 8
    source = load_split(load_data(trained.recipe.data, trained.task.spec), trained.recipe.data, "val")
    for i in range(len(source)):
        seen = trained.task.prepare(source.gather(torch.tensor([i])))["image"]
        assert torch.equal(seen, trained.task.prepare(next(trained.task.read_file(root / source.name(i)))[1])["image"])


@pytest.mark.parametrize(
    ("side", "seen"), [((32, 32), (32, 32)), ((28, 40), (28, 28)), ((100, 130), (96, 96)), ((300, 280), (224, 256))]
)
def test_images_are_not_enlarged_unless_that_is_asked_for(
    tmp_path: Path, side: tuple[int, int], seen: tuple[int, int]
) -> None:
    """60,000 images of 32 x 32 were blown up to 224 x 224, at a fortieth of the speed."""
    for name in ("cat", "dog"):
        for i in range(3):
            put(tmp_path / name / f"{i}.png", size=side)
    found = image_folder(tmp_path, path=str(tmp_path))
    assert (found.spec.height, found.spec.square) == seen
    assert any("data.size" in note for note in found.notes) == (seen[0] != 224)
    assert found.load["train"]().gather(torch.tensor([0]))["image"].shape[2:] == (seen[1], seen[1])
    asked = image_folder(tmp_path, path=str(tmp_path), size=224)
    assert (asked.spec.height, asked.spec.square, asked.notes) == (224, 256, [])
    again = image_folder(tmp_path, like=asked.spec, path=str(tmp_path))  # evaluated as the checkpoint was trained
    assert again.spec == asked.spec
