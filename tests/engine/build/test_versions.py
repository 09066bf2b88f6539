"""Old checkpoints load for ever: a golden file of each version, and migrations that chain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.engine.build.load import load_trained
from bigmodel_cli.engine.checkpoint import checkpoint

GOLDEN = sorted((Path(__file__).parents[2] / "golden").glob("v*.pt"))


def test_every_version_has_a_golden_file_of_at_most_100_kb() -> None:
    assert [p.stem for p in GOLDEN] == [f"v{n}" for n in range(1, checkpoint.VERSION + 1)]
    assert all(p.stat().st_size < 100_000 for p in GOLDEN)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_a_golden_file_gives_its_logits(path: Path) -> None:
    known = load_file(path.with_suffix(".safetensors"))
    trained = load_trained(path)
    raw = {"image": known["picture"], "label": torch.zeros(8, dtype=torch.int64), "index": torch.arange(8)}
    with torch.inference_mode():
        logits = trained.model(trained.task.prepare(raw)["image"])
        # One bit less than single precision: another processor may add in another order.
        torch.testing.assert_close(logits, known["logits"], rtol=2e-6, atol=2e-6)
        trained.model.head.bias[0] += 1e-3  # the comparison can fail
        with pytest.raises(AssertionError):
            torch.testing.assert_close(
                trained.model(trained.task.prepare(raw)["image"]), known["logits"], rtol=2e-6, atol=2e-6
            )


def test_an_old_checkpoint_keeps_its_val_split() -> None:
    """Its recipe does not say how val is split off train: by shuffling, as then."""
    assert load_trained(GOLDEN[0]).recipe.data.carve == "shuffle"


def _two_to_three(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "progress": {**state["progress"], "renamed": state["progress"]["added"]}}


def future(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if two more versions had been released since."""
    one_to_two = lambda state: {**state, "progress": {**state["progress"], "added": 7}}  # noqa: E731
    monkeypatch.setattr(checkpoint, "MIGRATIONS", {1: one_to_two, 2: _two_to_three})
    monkeypatch.setattr(checkpoint, "VERSION", 3)


def test_migrations_chain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    future(monkeypatch)
    was, state = checkpoint.load_with_version(GOLDEN[0])
    assert (was, state["version"], state["progress"]["renamed"]) == (1, 3, 7)
    checkpoint.save(tmp_path / "new.pt", state)
    assert checkpoint.load_with_version(tmp_path / "new.pt")[0] == 3
    assert checkpoint.digest(checkpoint.load(tmp_path / "new.pt")) == checkpoint.digest(state)
    # An old file is held to its own digest before it is brought up.
    raw = bytearray(GOLDEN[0].read_bytes())
    raw[len(raw) // 2] ^= 4
    (tmp_path / "old.pt").write_bytes(raw)
    with pytest.raises(InputError):
        checkpoint.load(tmp_path / "old.pt")


def test_the_migrate_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    from bigmodel_cli.commands.checkpoint import migrate

    old, new = GOLDEN[0], tmp_path / "new.pt"
    migrate(old, json=True)
    assert json.loads(capsys.readouterr().out) == {"file": str(old), "version": 1, "current": 1, "written": None}
    future(monkeypatch)
    with pytest.raises(InputError):
        migrate(old)
    assert list(tmp_path.iterdir()) == []  # without --out nothing is written, least of all over the old one
    migrate(old, new, json=True)
    assert json.loads(capsys.readouterr().out) == {"file": str(old), "version": 1, "current": 3, "written": str(new)}
    assert checkpoint.load(new)["progress"]["renamed"] == 7
    before = new.read_bytes()
    with pytest.raises(InputError):
        migrate(old, new)
    assert new.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["new.pt"]
