"""Compression on a network that was really trained: each artefact opened again by the ordinary commands."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer import Exit

from bigmodel_cli.commands.compress import compress
from bigmodel_cli.compress import search as search_module
from bigmodel_cli.compress import trial
from bigmodel_cli.compress import work as work_module
from bigmodel_cli.compress.prune import prune_model
from bigmodel_cli.compress.search import Frontier, Goal, Search
from bigmodel_cli.compress.trial import Judge, Point
from bigmodel_cli.compress.work import Data, Work, select_method
from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.registry import compressions, models
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import ImageSpec, TextSpec
from bigmodel_cli.engine.build.data import load_data
from bigmodel_cli.engine.build.load import load_trained
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.loop import fit
from bigmodel_cli.models.adapters.pruned import diff_widths, narrow
from bigmodel_cli.models.quantization.quantized_weights import pack, unpack, unpack_state


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here asks how fast anything is."""
    monkeypatch.setattr(trial, "SECONDS", 0.01)


@contextlib.contextmanager
def unseen() -> Iterator[Any]:
    yield lambda event: None


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small residual network after six epochs on digits."""
    path = tmp_path_factory.mktemp("source") / "best.pt"
    layers = {"model": {"name": "resnet8"}, "train": {"epochs": 6}, "optimizer": {"name": "adamw", "lr": 0.01}}
    run = assemble(resolve([Layer("t", layers)]).recipe)
    assert fit(run)
    checkpoint.save(path, run.state())
    return path


def compressed(source: Path, name: str, folder: Path, **options: Any) -> Path:
    trained = load_trained(source)
    entry = select_method(name, trained)
    out = folder / ("export" if entry.meta["gives"] == "export" else "model.pt")
    data = Data(trained.recipe, trained.task.spec)
    entry(Work(trained, trained.recipe, data, out, unseen), **entry.options(options, "compress"))
    return out


def judged(source: Path, artefact: Path) -> tuple[Point, Point]:
    trained = load_trained(source)
    judge = Judge.of(trained, Data(trained.recipe, trained.task.spec))
    return judge.point_of_source(), judge.point("x", artefact)


@pytest.mark.parametrize(
    ("method", "smaller", "drop"),
    [("bf16", 1.75, 1.0), ("fp16", 1.75, 0.8), ("int8-weights", 2.5, 1.5), ("int4-weights", 2.8, 5.0)],
)
def test_weights_in_fewer_bits(method: str, smaller: float, drop: float, source: Path, tmp_path: Path) -> None:
    was, now = judged(source, compressed(source, method, tmp_path))
    assert was.bytes / now.bytes > smaller and now.drop <= drop and was.value > 0.9
    one, other = load_trained(source), load_trained(Path(now.path))
    weights = [t.model.layer2[0].conv1.weight for t in (one, other)]
    assert not torch.equal(*weights)  # it was rounded
    torch.testing.assert_close(*weights, rtol=0.2, atol=0.05)
    assert other.meta["compressed"][-1]["method"] == method
    with pytest.raises(InputError):
        select_method("int8", other)


@pytest.mark.parametrize("levels", [7, 127])
def test_packed_weights_come_back_exactly(levels: int) -> None:
    numbers = torch.randint(-levels - 1, levels + 1, (6, 64), dtype=torch.int8)
    scale = torch.rand(6, 2) + 0.1
    parts = pack(numbers, scale, torch.Size((6, 16, 2, 2)))
    assert parts[".packed"].nelement() == 6 * 64 // (2 if levels == 7 else 1)
    wanted = (numbers.view(6, 2, 32) * scale[:, :, None]).reshape(6, 16, 2, 2)
    assert torch.equal(unpack(*parts.values()), wanted)
    state = {"a.weight" + end: part for end, part in parts.items()} | {"a.scale": torch.ones(1)}
    assert set(unpack_state(state)) == {"a.weight", "a.scale"}


def test_pruning_shrinks_every_tensor_and_is_an_ordinary_checkpoint(source: Path, run_cli: Any, tmp_path: Path) -> None:
    trained = load_trained(source)
    out = compressed(source, "prune", tmp_path / "p", ratio=0.5, epochs=2, lr=3e-3)
    was, now = judged(source, out)
    assert was.bytes / now.bytes > 1.5 and now.drop < 5
    slim = load_trained(out)
    assert sum(p.numel() for p in slim.model.parameters()) < 0.6 * sum(p.numel() for p in trained.model.parameters())
    assert slim.recipe.model.pruned and slim.model.layer1[0].conv1.out_channels == 8
    # What is cut out and written answers like the network in memory that it was cut from.
    again = prune_model(trained.model, (torch.randn(2, 1, 8, 8),), 0.5, "fc")
    cut = load_trained(tmp_path / "p" / "cut.pt").model
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(cut(x), again(x))
    for command in (
        ("finetune", "--from", out, "--epochs", 1, "--out", "tuned"),
        ("train", "--resume", "--out", "tuned", "--epochs", 2),
        ("eval", "tuned"),
        ("export", "tuned", "--format", "safetensors", "--out", "weights"),
    ):
        done = run_cli(*command)
        assert done.returncode == 0, done.stderr
    assert load_trained(tmp_path / "tuned").model.layer1[0].conv1.out_channels == 8


@pytest.mark.parametrize(
    ("name", "most"), [("resnet18", 0.4), ("resnet20", 0.7), ("cnn", 0.6), ("vit", 0.8), ("mlp", 0.6), ("gpt", 0.85)]
)  # fmt: skip
def test_every_kind_of_network_can_be_narrowed(name: str, most: float) -> None:
    torch.manual_seed(0)
    entry = models.get(name)
    spec: Any = TextSpec.typical() if name == "gpt" else ImageSpec.typical()
    options = {"layers": 1, "width": 32, "heads": 2} if name == "gpt" else {"depth": 1} if name == "vit" else {}
    model = entry(spec, **entry.options(options, "model")).eval()
    x = torch.randint(0, 50, (2, 16)) if name == "gpt" else torch.randn(2, 1, 28, 28)
    small = prune_model(model, (x,), 0.5, entry.meta["head"])
    count = [sum(p.numel() for p in m.parameters()) for m in (small, model)]
    assert count[0] < most * count[1]
    # Only plain numbers go into the recipe: they rebuild the same shapes.
    widths = json.loads(json.dumps(diff_widths(small, model)))
    built = narrow(entry(spec, **entry.options(options, "model")), widths).eval()
    built.load_state_dict(small.state_dict())
    torch.testing.assert_close(built(x), small(x))


@pytest.mark.parametrize(
    ("widths", "line"),
    [
        ({"conv9": (None, 4)}, "no layer 'conv9'"),
        ({"conv1": (None, 1 << 40)}, r"conv1 is \[1, 1099511627776\]; expected 1 to \[1, 16\]"),
        ({"conv1": (None, 0)}, "expected 1 to"),
        ({"activation": (None, 4)}, "no layer 'activation'"),
    ],
)
def test_widths_that_do_not_fit_are_refused(widths: Any, line: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=line):
        narrow(models.get("resnet8")(ImageSpec.typical()), widths)
    state = checkpoint.load(source)  # a stranger's checkpoint says the same
    state["meta"]["recipe"]["model"]["pruned"] = {k: list(v) for k, v in widths.items()}
    checkpoint.save(tmp_path / "x.pt", state)
    with pytest.raises(InputError, match=r"model\.pruned"):
        load_trained(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "change",
    [
        {".scale": torch.ones(3)}, {".scale": torch.ones(10, 0)}, {".scale": torch.ones(10, 7)}, {".shape": None},
        {".shape": torch.tensor([1 << 40, 64])}, {".shape": torch.tensor([10.0, 64.0])}, {".shape": torch.tensor(640)},
        {".packed": torch.zeros(640, dtype=torch.uint8)}, {".packed": torch.zeros((10, 9), dtype=torch.int8)},
        {".packed": torch.zeros((10, 32), dtype=torch.uint8), ".code": torch.ones(15)}, {".offset": torch.ones(7)},
        {".scale": None, ".scale.packed": torch.ones((10, 1), dtype=torch.int8)},
    ],
)  # fmt: skip
def test_packed_weights_that_do_not_fit_are_refused(change: Any, source: Path, tmp_path: Path) -> None:
    state = checkpoint.load(source)
    weight = state["model"].pop("fc.weight")
    parts = pack(torch.ones(weight.shape, dtype=torch.int8) * 100, torch.ones(10, 1), weight.shape) | change
    state["model"] |= {"fc.weight" + end: part for end, part in parts.items() if part is not None}
    checkpoint.save(tmp_path / "x.pt", state)
    with pytest.raises(InputError):
        load_trained(tmp_path / "x.pt")


def test_int8_of_onnxruntime(source: Path, run_cli: Any, tmp_path: Path) -> None:
    """The folder is answered by ``eval`` and ``predict`` like a checkpoint, and its arithmetic is int8."""
    import onnx
    from PIL import Image

    done = run_cli("compress", source, "--method", "int8-onnx", "--out", "small")
    assert done.returncode == 0 and "int8-onnx" in done.stdout, done.stderr
    kinds = {node.op_type for node in onnx.load(tmp_path / "small/export/model.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    was, now = judged(source, tmp_path / "small/export")
    assert was.bytes / now.bytes > 2 and now.drop < 2
    card = (tmp_path / "small/export/MODEL_CARD.md").read_text()
    assert "by `int8-onnx` (samples 512, ranges minmax)" in card and "Quantization cost" in card
    told = run_cli("eval", "small/export", "--json")
    assert json.loads(told.stdout)["headline"]["accuracy"]["value"] == pytest.approx(now.value)
    Image.fromarray(torch.randint(0, 255, (8, 8), dtype=torch.uint8).numpy()).save(tmp_path / "a.png")
    answers = [run_cli("predict", path, "a.png", "--json") for path in (source, "small/export")]
    ours, theirs = (json.loads(a.stdout)["top"][0]["probability"] for a in answers)
    assert ours == pytest.approx(theirs, abs=0.1)
    again = run_cli("compress", "small/export", "--method", "int8-onnx")
    assert again.returncode == 2 and "an export; expected the checkpoint" in again.stderr
    twice = run_cli("compress", source, "--method", "int8-onnx", "--out", "small")
    assert twice.returncode == 2 and "holds a compressed model" in twice.stderr


def test_dynamic_int8_rounds_inputs_as_they_come(source: Path, tmp_path: Path) -> None:
    import onnx

    _, now = judged(source, compressed(source, "dynamic-int8", tmp_path))
    kinds = {node.op_type for node in onnx.load(Path(now.path) / "model.onnx").graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= kinds and now.drop < 2


def test_a_student_of_another_architecture(source: Path, tmp_path: Path) -> None:
    was, now = judged(source, compressed(source, "distill", tmp_path, model="mlp", epochs=5))
    assert was.bytes / now.bytes > 4 and now.value > 0.6
    assert load_trained(Path(now.path)).recipe.model.name == "mlp"


def test_calibration_reads_train_and_nothing_reads_test(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def watched(section: Any, like: Any) -> Any:
        bundle = load_data(section, like)

        def load(split: str) -> Any:
            asked.append(split)
            return bundle.load[split]()

        return replace(bundle, load={split: lambda split=split: load(split) for split in bundle.load})

    monkeypatch.setattr(work_module, "load_data", watched)
    judged(source, compressed(source, "int8-onnx", tmp_path, samples=64))
    assert set(asked) == {"train"}  # val is carved from it
    trained = load_trained(source)
    data = Data(trained.recipe, trained.task.spec)
    seen = [x for (batch,) in Work(trained, trained.recipe, data, tmp_path, unseen).calibration(64) for x in batch]
    every = trained.task.prepare(data.train.gather(torch.arange(len(data.train))))["image"]
    assert len(seen) == 64 and all(any(torch.equal(x, y) for y in every) for x in seen)


def test_classes_in_another_order_are_matched_by_name(source: Path) -> None:
    trained = load_trained(source)
    expected = Judge.of(trained, Data(trained.recipe, trained.task.spec)).value
    head, spec = trained.model.get_submodule(trained.head), trained.task.spec
    for tensor in head.state_dict().values():
        tensor.copy_(tensor.flip(0))
    other = replace(trained, task=replace(trained.task, spec=spec.with_(classes=spec.classes[::-1])))
    data = Data(other.recipe, other.task.spec)
    assert Judge.of(other, data).value == expected > 0.9
    sample = Work(other, other.recipe, data, Path(), unseen).subject(samples=8)
    with torch.inference_mode():
        said = sample.model(sample.prepared[0]["image"]).argmax(1)
    assert (said == sample.prepared[0]["label"]).float().mean() > 0.7


def search(source: Path, out: Path, goal: Goal) -> tuple[Frontier, list[str]]:
    told: list[str] = []
    trained = load_trained(source)
    repair = {"epochs": 1, "lr": 3e-3}
    return Search(trained, trained.recipe, out, goal, unseen, lambda p: told.append(p.name), repair).run(), told


def test_a_search_keeps_its_choice_and_what_is_done(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without nncf, whose import alone takes seconds; test_the_best_int8_after_qat has it.
    monkeypatch.setattr(search_module, "missing", lambda e: [n for n in e.meta.get("needs", ()) if n == "nncf"])
    found, told = search(source, tmp_path / "s", Goal(drop=0.0))
    assert found.chosen is not None and found.chosen.drop <= 0
    assert found.chosen.bytes <= 1.1 * min(p.bytes for p in found.points if p.drop <= 0)
    assert {"onnx-fp32", "int8-onnx", "int8-weights", "cut-0.3", "prune-0.3"} <= set(told)
    assert not any(o.dominates(p) for p in found.best() for o in found.points)
    assert found.skipped == ["int8-openvino: nncf not installed"]
    _, again = judged(source, Path(found.chosen.path))  # the kept artefact is the one that was measured
    assert (again.bytes, again.value) == (found.chosen.bytes, found.chosen.value)
    files = sorted((tmp_path / "s").rglob("point.json"))
    before = [(f, f.stat().st_mtime_ns) for f in files]
    # Run again, for what cannot be: nothing is made anew, and the best there is is named.
    with pytest.raises(Exit) as ended:
        compress(checkpoint=source, target_size="1KB", max_drop=0.0, lr=3e-3, epochs=1, out=tmp_path / "s", json=True)
    out, err = capsys.readouterr()
    assert ended.value.exit_code == 1 and "nothing meets 0.001 MB and a drop of 0 points: the closest is" in err
    assert [(f, f.stat().st_mtime_ns) for f in files] == before
    values = json.loads(out)
    assert values["chosen"] is None and [p["name"] for p in values["points"]] == told
    assert (tmp_path / "s/frontier.png").stat().st_size > 5000
    assert "uncompressed" in (tmp_path / "s/report.html").read_text()
    other = checkpoint.load(source)
    other["model"]["fc.bias"] += 1
    checkpoint.save(tmp_path / "other.pt", other)
    with pytest.raises(InputError, match="a search with another source"):
        search(tmp_path / "other.pt", tmp_path / "s", Goal(drop=3.0))


@pytest.mark.skipif("BIGMODEL_SOAK" not in os.environ, reason="a minute: BIGMODEL_SOAK=1")
def test_the_command_of_a_search_is_cut_off_and_goes_on(source: Path, run_cli: Any, tmp_path: Path) -> None:
    arguments = ("compress", source, "--max-drop", 1.0, "--epochs", 4, "--lr", 3e-3, "--out", "s")
    command = [sys.executable, "-m", "bigmodel_cli", *map(str, arguments)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("epoch") or "epoch 1 " in line:
                running.send_signal(signal.SIGTERM)
    assert running.returncode == 143
    done = run_cli(*arguments)
    assert done.returncode == 0 and "chosen: " in done.stdout, done.stderr
    assert max(map(len, run_cli(*arguments).stdout.splitlines()[:12])) <= 120


def test_what_a_goal_chooses() -> None:
    def point(name: str, size: int, drop: float) -> Point:
        return Point(name, name, [], size, {"1": 1.0}, {"1": 2.0}, "accuracy", 0.9, drop, 1)

    points = [point("a", 100, 0.0), point("b", 50, 0.4), point("c", 20, 2.0), point("d", 60, 0.5)]
    chosen = {str(g): (g.choose(points) or g.nearest(points)).name for g in (
        Goal(drop=0.5), Goal(size=60), Goal(size=60, drop=3.0), Goal(size=10), Goal(drop=-1.0), Goal(size=30, drop=1.0)
    )}  # fmt: skip
    assert list(chosen.values()) == ["b", "b", "c", "c", "a", "c"]
    assert Goal(size=10).choose(points) is None
    quick = replace(point("q", 54, 0.5), latency={"1": 0.5})  # hardly larger than b, and twice as fast
    assert Goal(drop=0.5).choose([*points, quick]) is quick
    assert [p.name for p in Frontier(points[0], points, None).best()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ((), 2, "nothing to do; expected --method"),
        (("--method", "int8", "--max-drop", 1), 2, "--method together with a search"),
        (("--method", "int9"), 2, "unknown compression method 'int9'"),
        (("--target-size", "2 miles"), 2, "--target-size 2 miles; expected a size such as 500KB"),
        (("--method", "prune", "--set", "compress.ratios=1"), 2, "unknown key compress.ratios; did you mean ratio?"),
        (("--method", "prune", "--set", "compress.ratio=1.5"), 2, "compress.ratio = 1.5"),
        (("--max-drop", 1, "--set", "compress.ratio=0.5"), 2, "a search sets the options of its methods"),
    ],
)
def test_bad_input(arguments: Any, code: int, line: str, source: Path, run_cli: Any, tmp_path: Path) -> None:
    done = run_cli("compress", source, *arguments, "--out", "new")
    assert done.returncode == code and line in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "new").exists()


def test_methods_say_what_they_are_not_for(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_trained(source)
    text = replace(trained, task=replace_spec(trained.task))
    with pytest.raises(InputError, match=r"--method int8 is for images; resnet8 takes text"):
        select_method("int8", text)
    monkeypatch.setattr(work_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="needs torch_pruning") as failed:
        select_method("prune", trained)
    assert failed.value.exit_code == 3 and failed.value.hint == install_line("compress")


def replace_spec(task: Any) -> Any:
    return replace(task, spec=TextSpec.typical())


def test_every_method_says_what_it_gives() -> None:
    for name in compressions.names():
        meta = compressions.get(name).meta
        assert meta["gives"] in ("checkpoint", "export") and set(meta["kinds"]) <= {"image", "text"}
        assert not meta.get("needs") or meta["extra"]


def test_the_best_int8_after_qat_is_on_its_grid(source: Path, tmp_path: Path) -> None:
    """The tuned weights are whole steps of their row, so that int8 changes nothing in them."""
    out = compressed(source, "qat", tmp_path, epochs=1)
    assert json.loads((out / "export.json").read_text())["format"] == "openvino"  # dev has it
    was, now = judged(source, out)
    assert now.drop < 3 and was.bytes / now.bytes > 2
    tuned = load_trained(tmp_path / "tuned.pt").model
    for module in tuned.modules():
        if isinstance(module, nn.Conv2d):
            rows = module.weight.detach().flatten(1)
            steps = rows / (rows.abs().amax(1, keepdim=True) / 127)
            torch.testing.assert_close(steps, steps.round(), atol=2e-3, rtol=0)
