"""constraints.lock pins what constraints.txt pins, each file by its SHA-256."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_lock_has_every_pinned_version_with_a_hash() -> None:
    """As `make lock` writes it; run that after a change of constraints.txt."""
    lines = [line for line in (ROOT / "constraints.lock").read_text().splitlines() if not line.startswith("#")]
    locked = {}
    for line in lines:
        name, version, digest = re.fullmatch(r"(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})", line).groups()  # type: ignore[union-attr]
        locked[re.sub(r"[-_.]+", "-", name)] = version
        assert len(set(digest)) > 4
    pinned = re.findall(r"^([\w.-]+)==([^\s;]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    for name, version in pinned:
        found = locked.get(re.sub(r"[-_.]+", "-", name.lower()))
        assert found is None or found == version, f"{name}: {found} is locked, {version} is pinned: make lock"
    unlocked = {name for name, _ in pinned if re.sub(r"[-_.]+", "-", name.lower()) not in locked}
    assert not unlocked & {"torch", "torchvision", "typer", "rich", "pydantic", "numpy", "onnx", "transformers"}
