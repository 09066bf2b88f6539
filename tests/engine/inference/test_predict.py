"""Many files: answered in batches, told in their order, the broken ones named and the others answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.inference import predict
from bigmodel_cli.engine.inference.predict import predict_files
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.run import Run


@pytest.fixture(scope="module")
def run() -> Run:
    values = {"model": {"name": "mlp"}, "data": {"name": "digits"}, "placement": {"precision": "fp32"}}
    return assemble(resolve([Layer("test", values)]).recipe)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Of two sizes, the fourth and the last broken."""
    files = []
    for i in range(11):
        pixels = torch.randint(0, 255, (8 + i % 3 // 2 * 8, 8), generator=torch.Generator().manual_seed(i))
        path = tmp_path / f"{i:02}.png"
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)
        files.append(path)
    files[3].write_bytes(b"no image")
    files[10].unlink()
    return files


def test_batches_answer_as_one_by_one_does(run: Run, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = run.model.eval()
    together = list(predict_files(model, run.task, run.placement, images, 3))
    assert [name for name, _ in together] == [str(p) for p in images]
    assert [i for i, (_, answer) in enumerate(together) if isinstance(answer, InputError)] == [3, 10]
    monkeypatch.setattr(predict, "MAX_BATCH", 1)
    for (_, one), (_, other) in zip(together, predict_files(model, run.task, run.placement, images, 3), strict=True):
        if isinstance(one, InputError):
            assert isinstance(other, InputError) and one.line == other.line
        else:
            assert not isinstance(other, InputError)
            assert [c for c, _ in one] == [c for c, _ in other]
            assert [p for _, p in one] == pytest.approx([p for _, p in other], abs=1e-6)


def test_the_command_answers_the_rest_and_exits_2(run: Run, images: list[Path], run_cli: Any, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.pt", run.state())
    done = run_cli("predict", "m.pt", *images, "--json")
    assert done.returncode == 2
    assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == [
        str(p) for i, p in enumerate(images) if i not in (3, 10)
    ]
    assert "03.png" in done.stderr and "10.png" in done.stderr


def test_lines_of_one_length_are_answered_together_in_the_order_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths alternate; a file in between is no text; with a short window none waits for long."""
    words = ["a", "fine", "film", "that", "we", "saw", "and", "did", "not", "like", "at", "all"]
    lines = [" ".join(words[i % 7 : i % 7 + 1 + i % 3]) for i in range(60)]
    (tmp_path / "seen.csv").write_text("text,label\n" + "".join(f"{line},{i % 2}\n" for i, line in enumerate(lines)))
    files = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    files[0].write_text("\n".join(lines[:40]))
    files[1].write_bytes(b"\xff\xfe\xff")
    files[2].write_text("\n".join(lines[40:]))
    data = {"name": "labelled_file", "path": str(tmp_path / "seen.csv")}
    values = {"model": {"name": "text-encoder", "width": 16}, "data": data, "placement": {"precision": "fp32"}}
    run = assemble(resolve([Layer("test", values)]).recipe, measure=False)
    model, batches = run.model.eval(), []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(tuple(inputs[0].shape)))

    def asked() -> list[tuple[str, Any]]:
        batches.clear()
        return list(predict_files(model, run.task, run.placement, files, 2))

    found = asked()
    assert [name for name, _ in found] == [
        *(f"{files[0]}:{i}" for i in range(1, 41)), str(files[1]), *(f"{files[2]}:{i}" for i in range(1, 21))
    ]  # fmt: skip
    assert isinstance(found[40][1], InputError) and sorted(batches) == [(20, 1), (20, 2), (20, 3)]
    for key, value, most in (("MAX_PENDING", 6, 3), ("MAX_PENDING_BYTES", 400, 12), ("MAX_BATCH", 1, 1)):
        monkeypatch.setattr(predict, key, value)
        again = asked()
        assert max(b for b, _ in batches) <= most and sum(b for b, _ in batches) == 60
        assert [name for name, _ in again] == [name for name, _ in found]
        for (_, one), (_, other) in zip(found[:40] + found[41:], again[:40] + again[41:], strict=True):
            assert [c for c, _ in one] == [c for c, _ in other]
            assert [p for _, p in one] == pytest.approx([p for _, p in other], abs=1e-6)
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "too long " * 200_000 if taken == 3 else "a fine film"

    endless_answers = predict_files(model, run.task, run.placement, [], 2, endless())
    first = [next(endless_answers) for _ in range(20)]
    assert taken <= 20 + predict.MAX_PENDING, "texts are read as they are predicted"
    refused = [(name, str(answer)) for name, answer in first if isinstance(answer, InputError)]
    assert refused == [("text 3", "text 3: 1,800,000 characters; expected at most 1,000,000 in a text")]
