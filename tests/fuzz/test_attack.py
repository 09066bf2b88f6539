"""A share of the attack in every run: no code, no traceback, within the limits; and independent readers agree."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import figures
import pytest
from attack import attack
from attack_files import MAKERS, opcodes
from attack_mutations import changed
from hostile import HOSTILE

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.tokenizers.files import checked_tokenizer
from bigmodel_cli.engine.checkpoint.safe_pickle import Unreadable, read_plain
from bigmodel_cli.engine.checkpoint.tensor_refs import Opaque

KINDS = [kind for kind in MAKERS if kind != "control"]
COUNT = 400 if figures.SOAK else 2


def test_every_reader_stands(tmp_path: Path) -> None:
    found = attack(KINDS, COUNT, 0 if not figures.SOAK else random.SystemRandom().randrange(10**9), tmp_path)
    tried = sum(tally.tried for tally in found.values())
    assert tried == COUNT * len(KINDS) and sum(tally.ran for tally in found.values()) == 0
    assert [bug for tally in found.values() for bug in tally.bugs] == []
    assert [line for tally in found.values() for line in (*tally.over_memory, *tally.over_time)] == []
    figures.record(
        "attack: hostile files", tried, 0, "lost: code ran, a traceback, or beyond 64 MB + 20x, 2 s + 2 s/MB"
    )


def test_the_watch_sees_what_runs(tmp_path: Path) -> None:
    """Negative control: a pickle read by ``pickle`` touches the canary, and the audit hook names the import."""
    tally = attack(["control"], 2, 0, tmp_path)["control"]
    assert tally.ran == tally.tried == 2 and tally.read == 2


def plain(raw: bytes) -> bool:
    """Whether our reader takes the pickle for plain values and tensors."""
    try:
        return not any(isinstance(value, Opaque) for _, value in read_plain(raw).special)
    except Unreadable:
        return False


ALLOWED = {"torch._utils", "collections", "torch"}
FICKLING = """
import json, sys
from fickling.fickle import Pickled
answers, sys.stdout = sys.stdout, sys.stderr  # fickling prints warnings
for line in sys.stdin:
    try:
        found = Pickled.load(bytes.fromhex(line))
        names = sorted({f"{i.module}.{n.name}" for i in found.properties.imports for n in i.names})
    except Exception as error:
        names = None
    print(json.dumps(names), file=answers, flush=True)
"""


def test_the_pickle_reader_against_fickling() -> None:
    """What our reader takes for plain imports nothing but torch's rebuilding of tensors, as fickling decompiles it."""
    pytest.importorskip("fickling", reason="pip install fickling")
    draw = random.Random(0)
    with zipfile.ZipFile(Path(__file__).parents[1] / "golden/v1.pt") as file:
        ours = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    count = 2000 if figures.SOAK else 60
    drawn = [ours, *(changed(draw, ours, opcodes(Path("/tmp/canary"))) for _ in range(count))]
    bad = [pickle.dumps(value, 2) for value in (len, random.Random, Path("x"))]
    done = subprocess.run(
        [sys.executable, "-P", "-c", FICKLING], input="\n".join(raw.hex() for raw in [*drawn, *bad]) + "\n",
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(drawn) + len(bad)
    taken = [(raw, names) for raw, names in zip(drawn, found, strict=False) if plain(raw) and names is not None]
    assert len(taken) > 3 and taken[0][0] == ours
    wrong = [n for _, names in taken for n in names if n.rpartition(".")[0] not in ALLOWED or "load" in n]
    assert wrong == []
    assert all(found[len(drawn) :]) and not any(map(plain, bad))  # control: both see an import
    figures.record("pickles, our reader against fickling", len(drawn), len(wrong), "lost: taken as plain, and imports")


TOKENIZERS = """
import json, os, resource, sys
from tokenizers import Tokenizer
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            known = Tokenizer.from_str(json.loads(line))
            known.no_padding(); known.no_truncation()
            known.decode(known.encode("one text of a few words " * 20).ids)
        except BaseException:
            os._exit(3)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_the_tokenizer_check_against_the_library(tmp_path: Path) -> None:
    """Nothing that the check lets through takes the library down: no signal, no memory or time without end."""
    pytest.importorskip("tokenizers")
    texts, passed = [], []
    for number in range(1500 if figures.SOAK else 40):
        place = tmp_path / str(number)
        place.mkdir()
        raw = MAKERS["tokenizer"](random.Random(f"t {number}"), place, place / "canary").read_bytes()
        texts.append(raw.decode(errors="replace"))
        try:
            checked_tokenizer(texts[-1])
            passed.append(texts[-1])
        except InputError:
            pass
    done = subprocess.run(
        [sys.executable, "-P", "-c", TOKENIZERS], input="".join(json.dumps(text) + "\n" for text in passed),
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    codes = [int(line) for line in done.stdout.split()]
    assert 0 in codes and len(passed) < len(texts), "some are fine, and some are refused"
    fallen = [passed[i][:300] for i, code in enumerate(codes) if code < 0]
    assert fallen == []
    figures.record("tokenizers, our check against the library", len(texts), len(fallen), "lost: the library fell")


def test_every_known_file_is_drawn() -> None:
    assert {"checkpoint", "safetensors", "sharded index", "recipe", "tokenizer", "tar", "csv", "jsonl", "picture",
            "export folder", "run folder", "study"} <= set(KINDS)  # fmt: skip
    assert len(HOSTILE) > 60
