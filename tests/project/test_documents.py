"""Every bigmodel command in README and docs is run, in the order in which it stands."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import environment

ROOT = Path(__file__).resolve().parents[2]
# A document tells of whole trainings; the test shortens each to a few small steps.
SHORT = {name: ["--max-steps", "2", "--batch-size", "32"] for name in ("train", "finetune")}
SHORT["export"] = ["--seconds", "0", "--samples", "8"]
NO_COMPILING = {"TORCHDYNAMO_DISABLE": "1"}  # env-check's own tests do compile, which takes seconds


def commands(document: Path) -> list[list[str]]:
    found = re.findall(r"^\s*(bigmodel [a-z][^#\n]*)", document.read_text(), re.MULTILINE)
    return [shlex.split(line)[1:] for line in found]


@pytest.mark.parametrize("name", ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_commands_in_documents(name: str, run_cli: Any, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "digit.png")
    for i, place in enumerate(f"{split}/{name}" for split in ("train", "val") for name in ("cat", "dog")):
        (tmp_path / "photos" / place).mkdir(parents=True)
        for j in range(4):
            Image.new("RGB", (90, 60), (60 * i, 60 * j, 0)).save(tmp_path / "photos" / place / f"{j}.jpg")
    (tmp_path / "letters.txt").write_text("to be or not to be\n" * 60)
    reviews = "".join(f"a fine film {i},good\na dull film {i},bad\n" for i in range(20))
    (tmp_path / "reviews.csv").write_text(f"text,label\n{reviews}")
    talks = [[{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "hello"}] for i in range(20)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    choices = [{"prompt": talk[:1], "chosen": "hello", "rejected": "no"} for talk in talks]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(choice) + "\n" for choice in choices))
    (tmp_path / "pairs.tsv").write_text("source\ttarget\n" + "a dog\tein Hund\na cat\teine Katze\n" * 20)
    films = "".join(
        f"The {'sad' if i % 2 else 'old'} sea {i},{'Drama|War' if i % 2 else 'War'},{i % 5}\n" for i in range(40)
    )
    (tmp_path / "films.csv").write_text(f"title,genres,stars\n{films}")
    shades = "".join(f"photos/train/{name}/{i}.jpg,{30 * i}\n" for name in ("cat", "dog") for i in range(4))
    (tmp_path / "shades.csv").write_text(f"image,brightness\n{shades}")
    clicks = [f"u{u},i{(u * 3 + t) % 20},{t % 5 + 1},{t}\n" for u in range(30) for t in range(6)]
    (tmp_path / "clicks.csv").write_text("user,item,rating,time\n" + "".join(clicks))
    found = commands(ROOT / name)
    assert found
    for arguments in found:
        if arguments == ["env-check"]:  # its own tests run it: it imports every extra each time
            continue
        short = [] if {"--resume", "--dry-run"} & set(arguments) else SHORT.get(arguments[0], [])
        if arguments[0] == "serve":
            assert served(arguments, tmp_path) == 0
            continue
        done = run_cli(*arguments, *short, variables=NO_COMPILING)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"


def served(arguments: list[str], folder: Path) -> int:
    """How the service ends when it is asked to, once it has said where it is."""
    command = [sys.executable, "-m", "bigmodel_cli", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment()) as process:
        try:
            assert process.stdout is not None and process.stdout.readline().startswith("http://127.0.0.1:")
            process.terminate()
            return process.wait(30)
        finally:
            process.kill()


def anchors(document: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for target, fragment in re.findall(r"\]\(([^):#]*)(?:#([^)]+))?\)", document.read_text()):
            page = document.parent / target if target else document
            assert page.exists(), f"{document.name}: {target}"
            assert not fragment or fragment in anchors(page), f"{document.name}: {target}#{fragment}"
    text = (ROOT / "docs/from-zero.md").read_text()
    for file in re.findall(r"`(bigmodel_cli/[a-z_/]+\.py)`", text):
        assert (ROOT / file).exists(), file
