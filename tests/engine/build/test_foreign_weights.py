"""Weights that other programs saved: found under any usual name, matched by tensor, or refused with the counts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.engine.build.foreign_weights import (
    exported_model_section,
    find_state_dict,
    infer_options,
    is_foreign,
    load_foreign_weights,
)
from bigmodel_cli.engine.checkpoint import checkpoint

SPEC = ImageSpec(3, 32, 32, tuple("abcdefghij"))


def reference() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return torchvision.models.resnet18().state_dict()


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


STATE = reference()
FORMS: dict[str, Any] = {
    "plain": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 90, "best": 0.7, "arch": "resnet18"},
    "model": {"model": STATE, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "averaged": {"model": {k: v * 0 for k, v in STATE.items()}, "model_ema": STATE},
    "timm_averaged": {"state_dict": {k: v * 0 for k, v in STATE.items()}, "state_dict_ema": STATE},
    "parallel": prefixed("module.", STATE),
    "compiled": prefixed("_orig_mod.", STATE),
    "both": {"model": prefixed("_orig_mod.module.", STATE)},
    "lightning": {"state_dict": prefixed("model.", STATE), "pytorch-lightning_version": "2.0"},
    "backbone": {"state_dict": {**prefixed("backbone.", STATE), "projector.weight": torch.ones(2)}},
    "half": {k: v.half() if v.is_floating_point() else v for k, v in STATE.items()},
    "without_counters": {k: v for k, v in STATE.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_loads(form: str, tmp_path: Path) -> None:
    torch.save(FORMS[form], tmp_path / "x.pt")
    assert is_foreign(tmp_path / "x.pt")
    entry = models.get("resnet18")
    model = entry(SPEC, stem="imagenet")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (line,) = load_foreign_weights(model, tmp_path / "x.pt", entry.meta)
    missing, unexpected = (20 if form == "without_counters" else 0), int(form == "backbone")
    assert f"{120 - missing} of 120 tensors matched, {missing} missing" in line and f"{unexpected} unexpected" in line
    for name, tensor in model.state_dict().items():
        if name.startswith("fc."):
            assert before["fc.weight"].any() and not tensor.any()  # a new head starts at zero
        elif missing == 0 or "num_batches" not in name:
            tolerance = 1e-2 if form == "half" else 0
            torch.testing.assert_close(tensor, STATE[name], rtol=tolerance, atol=tolerance)


def test_safetensors_and_the_shapes_that_decide_the_stem(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    recipe = resolve([Layer("test", {"model": {"name": "resnet18"}})]).recipe
    assert infer_options(recipe, [], SPEC, tmp_path / "x.safetensors") == {"stem": "imagenet"}
    assert infer_options(recipe, ["stem"], SPEC, tmp_path / "x.safetensors") == {}
    small = models.get("resnet18")(SPEC, stem="small").state_dict()
    save_file(small, tmp_path / "small.safetensors")
    photo = SPEC.with_(height=224, width=224)
    assert infer_options(recipe, [], photo, tmp_path / "small.safetensors")["stem"] in ("small", "strided")


def test_torchvisions_vision_transformer_is_ours_under_other_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.VisionTransformer(32, 4, 2, 3, 48, 192, num_classes=10).eval()
    torch.nn.init.normal_(theirs.heads.head.weight)
    torch.save(theirs.state_dict(), tmp_path / "x.pt")
    entry = models.get("vit")
    ours = entry(SPEC, patch=4, width=48, depth=2, heads=3).eval()
    (line,) = load_foreign_weights(ours, tmp_path / "x.pt", entry.meta)
    assert "0 missing, 0 unexpected" in line
    ours.head.load_state_dict(theirs.heads.head.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "layer4.1.conv2.weight"}, "1 missing (layer4.1.conv2.weight)"),
        (lambda s: {**s, "conv1.weight": torch.zeros(64, 3, 5, 5)}, "conv1.weight is (64, 3, 5, 5); the model's is"),
        (lambda s: {"epoch": 3}, "0 of 120 tensors matched"),
        (lambda s: torchvision.models.mobilenet_v3_small().state_dict(), "0 of 120 tensors matched"),
    ],
)  # fmt: skip
def test_other_weights_are_refused_with_the_counts(change: Any, message: str, tmp_path: Path) -> None:
    torch.save(change(STATE), tmp_path / "x.pt")
    entry = models.get("resnet18")
    model = entry(SPEC, stem="imagenet")
    before = checkpoint.digest(dict(model.state_dict()))
    with pytest.raises(InputError) as caught:
        load_foreign_weights(model, tmp_path / "x.pt", entry.meta)
    assert message in caught.value.line and len(caught.value.line) <= 200
    assert checkpoint.digest(dict(model.state_dict())) == before


def test_only_tensors_are_weights() -> None:
    assert find_state_dict([1, 2], Tensor) == ("", {})
    assert find_state_dict({"model": {"a": 1}, "w": torch.ones(1), 3: torch.ones(1)}, Tensor)[1].keys() == {"w"}


def test_the_command(run_cli: Any, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    short = ["--data", "digits", "--max-steps", 1]
    done = run_cli("finetune", "resnet18", "--from", "w.safetensors", *short, "--out", "run", "--freeze-backbone")
    assert done.returncode == 0, done.stderr
    assert "120 of 120 tensors matched, 0 missing, 0 unexpected" in done.stderr
    assert "filters summed over the input channels (3 -> 1)" in done.stderr
    kept = torch.load(tmp_path / "run/best.pt", weights_only=True)["model"]
    assert torch.equal(kept["layer1.0.conv1.weight"], STATE["layer1.0.conv1.weight"])
    # The recipe beside the weights holds what the shapes decided: it stands alone.
    assert "stem: imagenet" in (tmp_path / "run/recipe.yaml").read_text()
    assert run_cli("eval", "run").returncode == 0
    done = run_cli("finetune", "--from", "w.safetensors", *short)
    assert done.returncode == 2 and "does not name its model; expected MODEL" in done.stderr
    done = run_cli("finetune", "mlp", "--from", "run", *short)
    assert done.returncode == 2 and "MODEL is mlp; run/best.pt holds a resnet18" in done.stderr


def test_an_export_of_ours_names_its_model(run_cli: Any, tmp_path: Path) -> None:
    assert run_cli("train", "mlp", "--set", "model.hidden=[9]", "--max-steps", 1, "--out", "run").returncode == 0
    assert run_cli("export", "run", "--format", "safetensors", "--out", "w").returncode == 0
    assert exported_model_section(tmp_path / "w/model.safetensors")["hidden"] == [9]
    done = run_cli("finetune", "--from", "w/model.safetensors", "--max-steps", 1, "--json")
    start = json.loads(done.stdout.splitlines()[0])
    assert start["model"] == "mlp" and any("0 missing, 0 unexpected" in note for note in start["notes"])


def test_a_pinned_start_is_looked_at_before_anything_is_read_of_it(run_cli: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(STATE, file)
    right, wrong = hashlib.sha256(file.read_bytes()).hexdigest(), "0" * 64
    (tmp_path / "noise.pt").write_bytes(b"not even a checkpoint")
    command = ["finetune", "resnet18", "--data", "digits", "--max-steps", 1, "--batch-size", 8, "--out", "r", "--from"]
    for name in ("x.safetensors", "noise.pt"):
        done = run_cli(*command, name, "--set", f"start.sha256={wrong}")
        assert done.returncode == 2 and "start.sha256 is 000000000000..." in done.stderr, done.stderr
        assert not (tmp_path / "r").exists()
    done = run_cli(*command, "x.safetensors", "--set", f"start.sha256={right.upper()}")
    assert done.returncode == 0, done.stderr
    file.write_bytes(file.read_bytes()[:-1] + b"x")  # the recipe holds the pin: train asks it too
    again = run_cli("train", "r/recipe.yaml", "--out", "again")
    assert again.returncode == 2 and "x.safetensors: SHA-256" in again.stderr
    for value, words in (("abc", "start.sha256"), (right, "start.sha256 without a start")):
        done = run_cli("train", "mlp", "--data", "digits", "--set", f"start.sha256={value}")
        assert done.returncode == 2 and words in done.stderr, done.stderr
