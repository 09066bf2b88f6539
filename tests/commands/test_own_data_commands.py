"""Own data through the real commands: what each says of what it reads, leaves out, and measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import Run
from PIL import Image

import bigmodel


def pictures(root: Path, *folders: str, count: int = 6) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), 5 * i + 100 * folder.endswith("b")).save(root / folder / f"{i}.png")
    return root


def ok(done: Any) -> Any:
    assert done.returncode == 0, done.stderr
    return done


def test_pictures_from_inspect_to_other_data(run_cli: Run, tmp_path: Path) -> None:
    root = pictures(tmp_path / "photos", "a", "b", count=30)
    (root / "a" / "x.jpg_large").write_bytes(b"x")
    train = ("train", "mlp", "--batch-size", 8, "--set", "placement.precision=fp32")
    begun = ok(run_cli(*train, "--data", "./photos", "--epochs", 9, "--set", "train.patience=1", "--out", "r"))
    assert "1 file not used: .jpg_large 1" in begun.stderr
    assert "1 file not used: .jpg_large 1" in ok(run_cli("data", "inspect", "photos")).stderr
    stopped = json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[-1])["stopped_early"]
    assert ("stopped early after epoch" in begun.stderr) == stopped
    again = ok(run_cli("train", "--resume", "--out", "r"))
    assert ("has stopped early at step" if stopped else "done already") in again.stderr
    first = json.loads(ok(run_cli("eval", "r", "--json")).stdout)
    assert first["split"] == "val" and any("split off train" in note for note in first["notes"])
    pictures(tmp_path / "more", "a", "b", count=3)
    for i in range(3):
        (tmp_path / "more/a" / f"{i}.png").rename(root / "a" / f"new{i}.png")
    grown = json.loads(ok(run_cli("eval", "r", "--json")).stdout)
    assert any("the data has changed since the checkpoint was trained" in note for note in grown["notes"])
    assert grown["samples"] >= first["samples"]
    tuned = ok(run_cli("finetune", "--from", "r", "--epochs", 1, "--batch-size", 8, "--out", "t"))
    assert "the data has changed since the checkpoint was trained" in tuned.stderr
    pictures(tmp_path / "held", "a", count=7)
    whole = json.loads(ok(run_cli("eval", "r", "--data", "./held", "--json")).stdout)
    assert (whole["split"], whole["samples"]) == ("all", 7)
    pictures(tmp_path / "only", "test/a", "test/b", count=4)
    assert json.loads(ok(run_cli("eval", "r", "--data", "./only", "--json")).stdout)["samples"] == 8
    refused = run_cli(*train, "--data", "./held", "--out", "no")
    assert refused.returncode == 2 and "only one class (a)" in refused.stderr
    (tmp_path / "list.csv").write_text("id,breed\nheld/a/3,x\nheld/a/gone,x\nheld/a/1,y\n")
    listed = run_cli("predict", "r", "list.csv", "--json")
    assert listed.returncode == 2 and "list.csv:3: no file held/a/gone" in listed.stderr
    assert [Path(json.loads(line)["file"]).name for line in listed.stdout.splitlines()] == ["3.png", "1.png"]


def test_a_table_by_its_columns_in_every_command(run_cli: Run, tmp_path: Path) -> None:
    rows = "".join(f'"{3 + i % 2}","{"good" if i % 2 else "bad"} {i}","film, number {i % 9}"\n' for i in range(60))
    (tmp_path / "a.csv").write_text(rows)
    data = ("--data", "./a.csv", "--columns", "label=1,text=2+3")
    train = ("train", "text-cnn", "--set", "model.width=8", "--set", "model.filters=4", "--epochs", 1)
    assert "no header" in ok(run_cli(*train, *data, "--out", "r")).stderr
    found = json.loads(ok(run_cli("data", "inspect", "a.csv", "--columns", "label=1,text=2+3", "--json")).stdout)
    assert found["classes"] == {"3": 30, "4": 30}
    assert len(ok(run_cli("predict", "r", "a.csv", "--json")).stdout.splitlines()) == 60
    assert len(bigmodel.load(tmp_path / "r").predict(tmp_path / "a.csv")) == 60
    (tmp_path / "b.csv").write_text("kind;review;year\n3;bad film;2001\n4;good film;1999\n")
    other = ("--columns", "label=kind,text=review", "--by", "year")
    whole = json.loads(ok(run_cli("eval", "r", "--data", "./b.csv", *other, "--json")).stdout)
    assert (whole["split"], whole["samples"]) == ("all", 2)
    assert {row["value"]: row["samples"] for row in whole["slices"]["rows"]} == {"2001": 1, "1999": 1}
    assert whole["page"] == "r/eval-all-b.csv.html"  # beside that of its own data, not in its place
    (tmp_path / "c.csv").write_text("kind;review\n3;bad film\n4;good film\n")
    said = ok(run_cli("predict", "r", "c.csv", "--json"))  # which lacks the columns of the training data
    assert len(said.stdout.splitlines()) == 2 and "read by the usual names: text=review" in said.stderr
    wrong = run_cli(*train, "--data", "./a.csv", "--out", "no")
    assert wrong.returncode == 2 and "--columns text=NAME,label=NAME" in wrong.stderr


def test_finetune_reads_its_data_once(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "counted.py").write_text(
        "from pathlib import Path\n"
        "from bigmodel_cli.core.registry import data\n"
        "@data.register()\n"
        "def counted(root, *, flavour: int = 0):\n"
        '    """Digits, and a mark in the file `reads` for each time that they are read."""\n'
        "    with Path('reads').open('a') as marks:\n"
        "        marks.write('x')\n"
        "    return data.get('digits')(root)\n"
    )
    own = ("--import", "counted.py")
    ok(run_cli("train", "mlp", "--data", "counted", "--epochs", 1, "--out", "r", *own))
    for method, more in (("full", ()), ("auto", ()), ("full", ("--set", "data.flavour=1"))):
        (tmp_path / "reads").unlink()
        ok(
            run_cli(
                "finetune", "--from", "r", "--method", method, *more, "--epochs", 1, "--overwrite", "--out", "t", *own
            )
        )
        assert (tmp_path / "reads").read_text() == "x", (method, more)


def test_few_photos_from_random_weights_name_the_better_start(run_cli: Run, tmp_path: Path) -> None:
    for kind in ("ant", "my bees"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (70, 64), (40 * i, 90, 10)).save(tmp_path / "photos" / kind / f"{i}.png")
    begun = ok(run_cli("train", "perceptron", "--data", "./photos", "--max-steps", 1, "--out", "r"))
    named = f"bigmodel finetune timm:tf_efficientnet_lite0 --pretrained --data {tmp_path / 'photos'}"
    assert named in begun.stdout and "; 1 step in" in begun.stdout
    tuned = ok(run_cli("finetune", "--from", "r", "--max-steps", 1, "--out", "t"))
    digits = ok(run_cli("train", "perceptron", "--data", "digits", "--max-steps", 1, "--out", "d"))
    assert "--pretrained" not in tuned.stdout + digits.stdout
