"""Many files: answered in batches, told in their order, the broken ones named and the others answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine import ask as asking
from bigmodel_cli.engine import checkpoint
from bigmodel_cli.engine.ask import ask
from bigmodel_cli.engine.assemble import assemble
from bigmodel_cli.engine.run import Run


@pytest.fixture(scope="module")
def run() -> Run:
    values = {"model": {"name": "mlp"}, "data": {"name": "digits"}, "placement": {"precision": "fp32"}}
    return assemble(resolve([Layer("test", values)]).recipe)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Of two sizes, the fourth and the last broken."""
    files = []
    for i in range(11):
        pixels = torch.randint(0, 255, (8 + i % 3 // 2 * 8, 8), generator=torch.Generator().manual_seed(i))
        path = tmp_path / f"{i:02}.png"
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)
        files.append(path)
    files[3].write_bytes(b"no picture")
    files[10].unlink()
    return files


def test_batches_answer_as_one_by_one_does(run: Run, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = run.model.eval()
    together = list(ask(model, run.task, run.placement, pictures, 3))
    assert [name for name, _ in together] == [str(p) for p in pictures]
    assert [i for i, (_, answer) in enumerate(together) if isinstance(answer, InputError)] == [3, 10]
    monkeypatch.setattr(asking, "MOST", 1)
    for (_, one), (_, other) in zip(together, ask(model, run.task, run.placement, pictures, 3), strict=True):
        if isinstance(one, InputError):
            assert isinstance(other, InputError) and one.line == other.line
        else:
            assert not isinstance(other, InputError)
            assert [c for c, _ in one] == [c for c, _ in other]
            assert [p for _, p in one] == pytest.approx([p for _, p in other], abs=1e-6)


def test_the_command_answers_the_rest_and_exits_2(run: Run, pictures: list[Path], run_cli: Any, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.pt", run.state())
    done = run_cli("predict", "m.pt", *pictures, "--json")
    assert done.returncode == 2
    assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == [
        str(p) for i, p in enumerate(pictures) if i not in (3, 10)
    ]
    assert "03.png" in done.stderr and "10.png" in done.stderr
