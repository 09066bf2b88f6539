"""The soak's invariant, on one blow; `make soak` strikes every command that writes for as long as it is told to."""

from __future__ import annotations

import dataclasses
import random
import re
from pathlib import Path

import chaos

NOTHING = "$^"


def test_a_blow_loses_nothing_and_what_is_not_named_is_told(tmp_path: Path) -> None:
    """With no file named, every file that is left is told, which is the negative control; nothing else is lost."""
    command = chaos.COMMANDS[0]
    (tmp_path / "work").mkdir()
    told = chaos.trial(dataclasses.replace(command, files=NOTHING), "kill", random.Random(1), tmp_path / "work")
    names = [line.removesuffix(" is left") for line in told if line.endswith(" is left")]
    assert names and len(names) == len(told), told
    assert all(re.fullmatch(command.files, name) for name in names), names


def test_what_is_no_longer_whole_is_told(tmp_path: Path) -> None:
    """Negative control: a checkpoint cut short, and token shards without their index, do not count as whole."""
    golden = Path(__file__).parents[1] / "golden/v1.pt"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/last.pt").write_bytes(golden.read_bytes())
    assert chaos.whole_things(tmp_path).keys() == {"run"}
    (tmp_path / "run/last.pt").write_bytes(golden.read_bytes()[:-100])
    assert chaos.whole_things(tmp_path) == {}
