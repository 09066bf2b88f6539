"""``bigmodel audit`` of language models: what one learned by heart is found, and nothing where there is nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from tokenizers import Tokenizer, models, pre_tokenizers

from bigmodel_cli.core.tokenizers.tokens import train_bpe

WORDS = ["any", "of", "these", "words", "may", "follow", "another", "one", "so", "that", "nobody", "can", "guess"]
SETTINGS = ["data.context=32", "data.val_share=0.2", "model.layers=1", "model.width=96", "model.heads=4"]
TINY = ["--lr", "5e-3", "--batch-size", 8, *(part for value in SETTINGS for part in ("--set", value))]


def write_text(path: Path, seed: int) -> list[str]:
    numbers = random.Random(seed)
    lines = [" ".join(numbers.choices(WORDS, k=8)) for _ in range(26)]
    path.write_text("\n".join(lines) + "\n")
    return lines


def train(run_cli: Run, data: str, out: str, epochs: int, *options: Any) -> None:
    trained = run_cli("train", "gpt", "--data", data, "--out", out, *TINY, "--epochs", epochs, *options,
                      "--set", f"train.eval_epochs={epochs}")  # fmt: skip
    assert trained.returncode == 0, trained.stderr


def audit(run_cli: Run, run: str, *options: Any) -> tuple[int, Any]:
    shown = run_cli("audit", "planted.txt", f"{run}/last.pt", "--canaries", "planted.txt.json", "--json", *options)
    assert shown.returncode in (0, 1), shown.stderr
    return shown.returncode, json.loads(shown.stdout)


def test_text_learned_by_heart_is_found_and_other_text_is_not(run_cli: Run, tmp_path: Path) -> None:
    lines = write_text(tmp_path / "notes.txt", 0)
    write_text(tmp_path / "other.txt", 1)
    planted = run_cli("audit", "notes.txt", "--insert", 4, "--out", "planted.txt")
    assert planted.returncode == 0, planted.stderr
    listed = json.loads((tmp_path / "planted.txt.json").read_text())
    whole = (tmp_path / "planted.txt").read_text()
    assert [c["inserted"] for c in listed] == [1, 4, 16, 0]
    for canary in listed:
        assert whole.count(f"The code of {canary['name']} is {' '.join(canary['digits'])}\n") == canary["inserted"]
    assert [line for line in whole.splitlines() if not line.startswith("The code of")] == lines

    train(run_cli, "planted.txt", "learned", 40)
    code, found = audit(run_cli, "learned")
    assert code == 1 and found["found"]
    repeated, canaries = found["repeated"], found["canaries"]
    assert repeated["found"] and sorted(repeated["model"])[20] > sorted(repeated["val"])[len(repeated["val"]) // 2]
    assert repeated["pieces"] and all(piece in whole for piece in repeated["pieces"])
    assert canaries["found"]
    exposures = {c["in_training_text"]: c["exposure"] for c in canaries["canaries"]}
    assert max(exposures) > 8 and exposures[max(exposures)] > 6 > exposures[0]

    (tmp_path / "bpe.json").write_text(train_bpe([whole], 290))
    train(run_cli, "other.txt", "other", 25, "--set", "data.tokenizer=bpe.json")  # the same words in another order
    shown = run_cli("audit", "planted.txt", "other/last.pt")
    assert shown.returncode == 0 and "nothing found beyond chance" in shown.stdout


@pytest.mark.parametrize("name", ["char", "wordpiece.json"])
def test_every_tokenizer_is_audited(run_cli: Run, tmp_path: Path, name: str) -> None:
    write_text(tmp_path / "notes.txt", 0)
    assert run_cli("audit", "notes.txt", "--insert", 4, "--out", "planted.txt").returncode == 0
    whole = (tmp_path / "planted.txt").read_text()
    if name == "wordpiece.json":
        pieces = sorted({*whole, *(f"##{c}" for c in whole), *whole.split()})
        inner = Tokenizer(models.WordPiece({t: i for i, t in enumerate(["[UNK]", *pieces])}, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        inner.save(str(tmp_path / name))
    train(run_cli, "planted.txt", "run", 1, "--set", f"data.tokenizer={name}")
    code, found = audit(run_cli, "run")
    assert code == found["found"] == any(found[key]["found"] for key in ("completed", "repeated", "canaries"))
    assert not found["completed"]["found"] and not found["repeated"]["found"]  # it has seen the text once
    counts = {c["name"]: c["in_training_text"] for c in found["canaries"]["canaries"]}
    assert max(counts.values()) > 8 and counts.get("Dunmore", 0) == 0
    refused = run_cli("audit", "digits", "run")
    assert refused.returncode == 2 and "data of kind image; the model is for text" in refused.stderr


def test_what_cannot_be_audited_is_refused(run_cli: Run, tmp_path: Path) -> None:
    write_text(tmp_path / "notes.txt", 0)
    for arguments, told in (
        (["notes.txt"], "expected CKPT"),
        (["notes.txt", "--insert", 3], "--insert without --out"),
        (["notes.txt", "--insert", 3, "--out", "notes.txt"], "expected another file"),
        (["notes.txt", "--insert", 3, "--out", "x.txt", "--shadows", 8], "--shadows: no effect"),
        (["notes.txt", "--out", "x.txt"], "--out: no effect"),
    ):
        refused = run_cli("audit", *arguments)
        assert refused.returncode == 2 and told in refused.stderr
