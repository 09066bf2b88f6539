"""constraints.lock pins what constraints.txt pins, each file by its SHA-256."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.lower())


def differences(locked: dict[str, str], pinned: list[tuple[str, str]]) -> list[str]:
    """The pinned packages of which another version is locked."""
    return [name for name, version in pinned if locked.get(plain(name), version) != version]


def test_the_lock_has_every_pinned_version_with_a_hash() -> None:
    """As `make lock` writes it; run that after a change of constraints.txt."""
    lines = [line for line in (ROOT / "constraints.lock").read_text().splitlines() if not line.startswith("#")]
    locked = {}
    for line in lines:
        name, version, digest = re.fullmatch(r"(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})", line).groups()  # type: ignore[union-attr]
        locked[plain(name)] = version
        assert len(set(digest)) > 4
    pinned = re.findall(r"^([\w.-]+)==([^\s;]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and differences(locked, pinned) == [], "make lock"
    assert differences({**locked, "torch": "1.0"}, pinned) == ["torch"], "an older one is noticed"
    unlocked = {name for name, _ in pinned if plain(name) not in locked}
    assert not unlocked & {"torch", "torchvision", "typer", "rich", "pydantic", "numpy", "onnx", "transformers"}
