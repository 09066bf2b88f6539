"""The proof: an export that does not answer like its source is not there, and what was there stays."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from subjects import SMALL, subject
from torch import nn

from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.core.files.owners import Owner, current_owner
from bigmodel_cli.core.registry import exports
from bigmodel_cli.export import proof as proving
from bigmodel_cli.export.checksums import SUMS, sums_text
from bigmodel_cli.export.compare import rounding
from bigmodel_cli.export.folder import Run, read_folder
from bigmodel_cli.export.latency import measure_latency
from bigmodel_cli.export.proof import Proof, prove
from bigmodel_cli.export.publish import check_target
from bigmodel_cli.export.subject import Subject

FORMATS = ["onnx", "pt2", "safetensors"]
Array = np.ndarray


@pytest.fixture(autouse=True)
def no_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process each; test_export_example.py is about them."""
    monkeypatch.setattr(proving, "run_example", lambda *_: None)


def line(sizes: tuple[int, ...] = (4, 4, 2)) -> Subject:
    return subject("perceptron", SMALL, sizes)


def made(name: str, out: Path, what: Subject | None = None, **more: Any) -> Proof:
    return prove(what or line(), name, out, **{"seconds": 0, **more})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def sabotage(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[Array], Array]) -> None:
    """The file's answers go through `spoil`."""
    entry = exports.get(name)
    honest = entry.meta["run"]

    def run(path: Path, build: Any) -> Run:
        answer = honest(path, build)
        return lambda *inputs: spoil(np.array(answer(*inputs)))

    monkeypatch.setitem(exports._entries, name, dataclasses.replace(entry, meta={**entry.meta, "run": run}))


def shifted_first(y: Array) -> Array:
    y[0, 0] += 0.01
    return y


def wrong_when_alone(y: Array) -> Array:
    return y + 1 if len(y) == 1 else y


def lost(y: Array) -> Array:
    return np.full_like(y, np.nan)


class Cancels(nn.Module):
    """Loses x to the rounding of fp32, and in fp64 keeps it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 2**25) - 2**25


def test_what_fp32_loses_by_itself_is_measured() -> None:
    x = torch.ones(2, 3)
    assert rounding(Cancels(), (x,)) == 1 and rounding(nn.Identity(), (x,)) == 0
    assert rounding(nn.Embedding(4, 2), (torch.tensor([1, 3]),)) == 0, "numbers of tokens stay whole"


CASES = [(name, shifted_first) for name in FORMATS]
CASES += [("safetensors", wrong_when_alone), ("safetensors", lost)]


@pytest.mark.parametrize(("name", "spoil"), CASES)
def test_a_file_that_answers_otherwise_fails_and_the_old_one_stays(
    name: str, spoil: Callable[[Array], Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    sabotage(monkeypatch, name, spoil)
    found = made(name, out)
    assert not found.passed and "a logit differs by" in found.failed[0] and len(found.failed) == 1
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setitem(exports._entries, name, dataclasses.replace(exports.get(name), meta=ORIGINAL[name]))
    assert made(name, out).passed
    before = contents(tmp_path)
    assert len(before) == 8
    sabotage(monkeypatch, name, spoil)
    assert not made(name, out, overwrite=True).passed
    assert contents(tmp_path) == before


ORIGINAL = {name: exports.get(name).meta for name in FORMATS}


def test_an_example_that_answers_otherwise_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "run_example", lambda *_: {"answer": "b", "failed": ["example.py is off"]})
    found = made("safetensors", tmp_path / "out")
    assert not found.passed and found.failed == ["example.py is off"] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_does_not_run_or_gives_another_shape(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch, name, lambda y: y[:, :1])  # a subtraction alone would broadcast it
    with pytest.raises(BigmodelError, match=r"does not run: a batch of 4 gives \(4, 1\), expected \(4, 3\)") as caught:
        made(name, tmp_path / "out")
    assert caught.value.exit_code == 1 and list(tmp_path.iterdir()) == []


def test_the_figures_are_those_of_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(y: Array) -> Array:
        """The answer of the first input of each batch is another class; by 8 in two of its three logits."""
        best, other = int(y[0].argmax()), int(y[0].argmin())
        y[0, best] -= 8
        y[0, other] += 8
        return y

    what = line()  # 10 inputs in batches of 4, 4 and 2
    with torch.inference_mode():
        for batch, prepared in zip(what.raw, what.prepared, strict=True):
            batch["label"] = prepared["label"] = what.model(prepared["image"]).argmax(1)  # the checkpoint is right
    sabotage(monkeypatch, "safetensors", swap)
    found = made("safetensors", tmp_path / "m", what)
    assert not found.passed and found.inputs == 10
    assert found.largest_difference == pytest.approx(8, rel=1e-5)
    assert found.mean_difference == pytest.approx(3 * 2 * 8 / 30, rel=1e-5)
    assert found.equal_answers == pytest.approx(0.7)
    ours, theirs = (found.metrics[w]["accuracy"] for w in ("checkpoint", "export"))
    assert ours == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert theirs["value"] == pytest.approx(0.7) and 0.3 <= theirs["low"] <= 0.6 <= 0.8 <= theirs["high"] <= 1


@pytest.mark.parametrize(("tolerance", "passes"), [(0.02, True), (0.005, False)])
def test_the_tolerance_decides(tolerance: float, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, "safetensors", shifted_first)
    found = made("safetensors", tmp_path / "m", tolerance=tolerance)
    assert found.passed == (tmp_path / "m").exists() == passes
    assert found.largest_difference == pytest.approx(0.01, rel=1e-3) and found.tolerance == tolerance


@pytest.mark.parametrize("name", FORMATS)
def test_the_folder_describes_the_model(name: str, tmp_path: Path) -> None:
    found = made(name, tmp_path / "out")
    folder = read_folder(tmp_path / "out")
    assert folder.about["format"] == name and folder.labels == ("a", "b", "c") and folder.spec == SMALL
    assert folder.preprocess == line().task.preprocessing() and folder.proof == json.loads(json.dumps(found.to_dict()))
    assert found.files == {folder.model.name: hashlib.sha256(folder.model.read_bytes()).hexdigest()}
    assert found.size["export"] == folder.model.stat().st_size and found.size["checkpoint"] == 4 * (4 * 3 + 3)
    card = (tmp_path / "out/MODEL_CARD.md").read_text()
    digest = found.files[folder.model.name]
    for part in ("perceptron", "| accuracy |", "## Limits", "2 x 2 pixels, grey", digest, '"a", "b", "c"'):
        assert part in card, part
    # What one account exports another may read, as the umask says.
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").iterdir()}
    assert len(modes) == 1


def test_speed_is_of_both_at_two_batch_sizes(tmp_path: Path) -> None:
    speed = made("safetensors", tmp_path / "out").speed
    assert speed["threads"] == torch.get_num_threads()
    for who in ("checkpoint", "export"):
        assert set(speed[who]) == {"1", "32"}
        for size, figures in speed[who].items():
            assert 0 < figures["p50_ms"] <= figures["p95_ms"] and figures["calls"] >= 5
            assert figures["per_second"] == pytest.approx(int(size) / figures["p50_ms"] * 1e3)


def test_what_is_timed_is_called_with_whole_batches() -> None:
    seen: dict[str, list[int]] = {"a": [], "b": []}
    ways = {w: ((lambda x, w=w: seen[w].append(len(x))), [torch.zeros(5, 2)]) for w in seen}
    measure_latency(ways, 0)
    assert seen["a"] == seen["b"] and set(seen["a"]) == {1, 32} and len(seen["a"]) == 2 * (2 + 1 + 5)


def test_a_changed_file_is_not_opened(tmp_path: Path) -> None:
    made("safetensors", tmp_path / "out")
    file = tmp_path / "out/model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(InputError, match="not the file that was exported"):
        read_folder(tmp_path / "out").open()
    file.unlink()
    with pytest.raises(InputError, match="not there"):
        read_folder(tmp_path / "out").open()


@pytest.mark.parametrize("files", [None, {}, {"README": "0"}, {"model.safetensors.old": "0"}, ["model.safetensors"]])
def test_a_proof_without_the_model_proves_nothing(files: Any, tmp_path: Path) -> None:
    made("safetensors", tmp_path / "out")
    proof = tmp_path / "out/proof.json"
    proof.write_text(json.dumps(json.loads(proof.read_text()) | {"files": files}))
    with pytest.raises(InputError, match=r"proof\.json: no digest of model\.safetensors"):
        read_folder(tmp_path / "out").open()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("export.json", "{", "export.json: cannot be read"),
        ("export.json", "[]", "expected a JSON object"),
        ("export.json", '{"format": "onnx"}', "damaged: no arch"),
        ("labels.json", '{"0": "a"}', "expected a list of names"),
        ("proof.json", "[" * 100_000, "proof.json: cannot be read"),
    ],
)
def test_a_damaged_folder_is_one_line(file: str, text: str, said: str, tmp_path: Path) -> None:
    made("safetensors", tmp_path / "out")
    (tmp_path / "out" / file).write_text(text)
    with pytest.raises(InputError, match=said):
        read_folder(tmp_path / "out").open()


def test_an_architecture_of_a_stranger_stays_a_number(tmp_path: Path) -> None:
    made("safetensors", tmp_path / "out", subject("mlp", SMALL, hidden=[4]))
    about = json.loads((tmp_path / "out/export.json").read_text())
    about["arch_args"]["hidden"] = [10**6, 10**6]
    (tmp_path / "out/export.json").write_text(json.dumps(about))
    (tmp_path / "out" / SUMS).write_text(sums_text(tmp_path / "out"))
    with pytest.raises(BigmodelError, match=r"does not load: .* in the architecture"):
        read_folder(tmp_path / "out").open()


def test_where_nothing_may_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no inputs"):
        made("safetensors", tmp_path / "out", dataclasses.replace(line(), raw=[]))
    with pytest.raises(InputError, match="nowhere: no such folder"):
        made("safetensors", tmp_path / "nowhere" / "out")
    with pytest.raises(InputError, match="did you mean onnx"):
        made("onxx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("mine")
    for name in ("file", "home"):
        with pytest.raises(InputError):
            made("safetensors", tmp_path / name, overwrite=True)
    assert contents(tmp_path) == {"file": b"mine", "home/thesis.txt": b"mine"}


def test_an_export_is_replaced_only_when_asked(tmp_path: Path) -> None:
    made("pt2", tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(InputError):
        made("safetensors", tmp_path / "out")
    assert contents(tmp_path) == before
    assert made("safetensors", tmp_path / "out", overwrite=True).passed
    assert {p.name for p in tmp_path.iterdir()} == {"out"} and not (tmp_path / "out/model.pt2").exists()


def ended_process() -> Owner:
    """A process of this host that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return dataclasses.replace(current_owner(), pid=process.pid)


@pytest.mark.parametrize("changed", [{"host": "0" * 8}, {"space": 7}], ids=str)
def test_what_may_live_elsewhere_is_left_alone_and_named(changed: dict[str, Any], tmp_path: Path) -> None:
    """Two hosts, or two containers, that share a folder: the other's number means nothing here."""
    gone = ended_process()
    other = dataclasses.replace(gone, **changed)
    drafts = [tmp_path / f".out.{owner.token}.new" for owner in (other, gone, current_owner())]
    for draft in drafts:
        draft.mkdir()
    (note,) = check_target(tmp_path / "next", overwrite=False)
    assert str(drafts[0]) in note
    assert [draft.exists() for draft in drafts] == [True, False, True]


def test_an_export_is_not_written_through_a_link(tmp_path: Path) -> None:
    """The link was renamed, could not be removed as a folder, and came back at the next export."""
    made("safetensors", tmp_path / "victim")
    before = contents(tmp_path / "victim")
    (tmp_path / "out").symlink_to("victim")
    with pytest.raises(InputError, match="is a link to victim"):
        made("pt2", tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "victim") == before
    assert {p.name for p in tmp_path.iterdir()} == {"victim", "out"} and (tmp_path / "out").is_symlink()


def test_what_a_killed_export_left_is_mended(tmp_path: Path) -> None:
    """Killed between the two renames: the old export has lost its name, the new one has none yet."""
    made("safetensors", tmp_path / "out")
    before = contents(tmp_path / "out")
    gone = ended_process().token
    (tmp_path / "out").rename(tmp_path / f".out.{gone}.old")
    (tmp_path / f".out.{gone}.new").mkdir()
    (tmp_path / f".mine.{gone}.new").write_text("a file of somebody's")
    made("pt2", tmp_path / "other")
    assert {p.name for p in tmp_path.iterdir()} == {"out", "other", f".mine.{gone}.new"}
    assert contents(tmp_path / "out") == before


def test_interrupted_while_comparing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(proving, "compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made("safetensors", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_exit_3_and_the_old_export_stays(tmp_path: Path) -> None:
    """In a process whose files may not grow past 10 kB, as on a full disk; the model is 100 kB."""
    program = """
import resource, signal, sys
from pathlib import Path
from subjects import subject
from bigmodel_cli.core.errors import BigmodelError
from bigmodel_cli.export.proof import prove
what = subject()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for name in sys.argv[1:]:
    try:
        prove(what, name, Path("out"), seconds=0, overwrite=True)
        print(name, "is written")
    except BigmodelError as error:
        print(name, error.exit_code, error.line)
"""
    made("safetensors", tmp_path / "out")
    before = contents(tmp_path)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program, *FORMATS], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(FORMATS) and all(
        line.startswith(f"{name} 3 out: cannot write: ") for name, line in zip(FORMATS, lines, strict=True)
    ), lines
    assert contents(tmp_path) == before
