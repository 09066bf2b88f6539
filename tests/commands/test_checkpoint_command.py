"""``bigmodel checkpoint show`` and ``verify``: ours and anyone's, whole and not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

GOLDEN = Path(__file__).parents[1] / "golden" / "v1.pt"


def test_ours(run_cli: Any) -> None:
    facts = json.loads(run_cli("checkpoint", "show", GOLDEN, "--json").stdout)
    assert facts["format"] == "bigmodel.checkpoint" and facts["version"] == 1 and facts["architecture"] == "mlp"
    assert facts["classes"] == [str(k) for k in range(10)] and facts["input"] == "1x8x8"
    state = torch.load(GOLDEN, weights_only=True)
    shapes = {t["name"]: (t["dtype"], t["shape"]) for t in facts["tensors"]}
    for name, tensor in state["model"].items():
        assert shapes["model." + name] == (str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
    assert {p["part"]: p["elements"] for p in facts["parts"]}["model"] == sum(
        t.numel() for t in state["model"].values()
    )
    shown = run_cli("checkpoint", "show", GOLDEN).stdout
    assert "bigmodel.checkpoint" in shown and "model.linear1.weight" in shown and "16x64" in shown
    assert "SHA-256 of every value" in run_cli("checkpoint", "verify", GOLDEN).stdout


def test_anyones(run_cli: Any, tmp_path: Path) -> None:
    weights = {"layer.weight": torch.ones(3, 2), "half": torch.ones(4).bfloat16()}
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "x.pt")
    save_file(weights, tmp_path / "x.safetensors", {"maker": "someone"})
    for name, expected in (
        ("x.pt", "CRC-32 of every entry"),
        ("x.safetensors", "a flipped bit in a weight is not detected"),
    ):
        facts = json.loads(run_cli("checkpoint", "show", name, "--json").stdout)
        found = {t["name"].removeprefix("state_dict."): (t["dtype"], t["shape"]) for t in facts["tensors"]}
        assert found == {"layer.weight": ("float32", [3, 2]), "half": ("bfloat16", [4])}
        done = run_cli("checkpoint", "verify", name)
        assert done.returncode == 0 and expected in done.stdout and "not a bigmodel checkpoint" in done.stdout
    assert facts["metadata"] == {"maker": "someone"}


def test_damage_is_found(run_cli: Any, tmp_path: Path) -> None:
    raw = bytearray(GOLDEN.read_bytes())
    raw[raw.index(b"PK\x01\x02") // 2] ^= 1
    (tmp_path / "bad.pt").write_bytes(raw)
    done = run_cli("checkpoint", "verify", "bad.pt")
    assert done.returncode == 2 and "bad.pt: damaged" in done.stderr and done.stdout == ""


def test_text_from_a_file_is_no_command_to_the_terminal(run_cli: Any, tmp_path: Path) -> None:
    """Names with escapes, markup and a line break are shown as they are written."""
    evil = "\x1b]0;gone\x07[bold red]x[/]\r\n\u202e"
    meta = {"arch": evil, "classes": [evil], "input": {"kind": evil}}
    torch.save({"format": "bigmodel.checkpoint", "model": {evil: torch.ones(2)}, "meta": meta}, tmp_path / "x.pt")
    name = tmp_path / "\x1b[31m[bold]y.pt"
    name.write_bytes((tmp_path / "x.pt").read_bytes())
    for file in ("x.pt", name.name):
        done = run_cli("checkpoint", "show", file)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout and "\x07" not in done.stdout and "\u202e" not in done.stdout
        assert r"\x1b]0;gone\x07[bold red]x[/]\r\n\u202e" in done.stdout
        assert "\x1b" not in run_cli("checkpoint", "verify", file).stderr
        assert "\x1b" not in run_cli("checkpoint", "show", file, "--json").stdout
    assert "[bold]y.pt" in run_cli("checkpoint", "show", name.name).stdout
