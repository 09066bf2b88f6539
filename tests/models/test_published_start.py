"""Fine-tuning from weights that others published: a head that knows nothing, their preprocessing, any image size."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from figures import share_of_pairs
from finetuned import METHODS, learns_ships_and_goes_on
from PIL import Image
from safetensors.torch import save_file

from bigmodel_cli.adapt.logistic_regression import STRENGTHS, solver
from bigmodel_cli.commands.training.finetune_layers import start_layers
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image.images import decode
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.data import thread_map
from bigmodel_cli.engine.build.data import load_data, train_and_val
from bigmodel_cli.engine.build.finetune_defaults import suitable_length
from bigmodel_cli.engine.build.transfer import adapt_positions
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.models.layers.position_embedding import resample_positions

timm = pytest.importorskip("timm")
CNN, VIT = "test_efficientnet", "test_vit"
IMAGES = {"data": {"name": "synthetic_images", "classes": 3, "count": 12}}
SHORT = {"train": {"max_steps": 6, "batch_size": 12, "eval_batch_size": 12}, "placement": {"precision": "fp32"}}


def settled(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of `model` after its BatchNorm layers have seen images, as those of a trained network have."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 160, 160))
    return model.state_dict()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights, laid out as published ones: two of timm, one of torchvision, a small resnet18."""
    root = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    for name in (CNN, VIT):
        target = root / f"weights/{models.get(f'timm:{name}').meta['weights'].repository}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(settled(timm.create_model(name)), target)
    import torchvision

    (root / "weights/torchvision").mkdir()
    file = models.get("tv:squeezenet1_1").meta["weights"].file
    torch.save(settled(torchvision.models.squeezenet1_1()), root / "weights/torchvision" / file)
    save_file(settled(torchvision.models.resnet18()), root / "resnet18.safetensors")
    ours = models.get("resnet20")(ImageSpec(3, 32, 32, ("a", "b")))
    save_file(settled(ours), root / "resnet20.safetensors")
    return root


def recipe_for(model: str, method: str, hub: Path, *more: dict[str, Any]) -> Recipe:
    section = {"model": {"name": model}, "data": {**IMAGES["data"], "dir": str(hub)}, **SHORT}
    options = {"layer": layer} if (layer := UNTIL.get(model)) and method == "freeze-until" else {}
    given = [Layer("t", section), *(Layer("more", layer) for layer in more)]
    file = hub / f"{model}.safetensors" if model.startswith("resnet") else None
    return resolve(start_layers(file, file is None, {"method": method, **options}, given).layers).recipe


UNTIL = {f"timm:{CNN}": "conv_head", f"timm:{VIT}": "norm", "tv:squeezenet1_1": "features.12", "resnet20": "layer3"}
PAIRS = [
    pair for pair in share_of_pairs(list(UNTIL), METHODS, ("freeze-backbone",)) if pair != ("tv:squeezenet1_1", "probe")
]


@pytest.mark.parametrize(("model", "method"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_every_method_starts_from_ln_k_learns_ships_and_goes_on(
    model: str, method: str, hub: Path, tmp_path: Path
) -> None:
    size = {"model": {"image_size": 64 if model.startswith("tv:") else 32}} if "timm" not in model else {}
    recipe = recipe_for(model, method, hub, size)
    try:
        run = assemble(recipe, measure=False)
    except InputError as error:  # SqueezeNet has no norms
        assert (model, method) == ("tv:squeezenet1_1", "norm-only") and "no normalization layer" in error.line
        return
    train, _ = train_and_val(load_data(recipe.data), recipe.data)
    learns_ships_and_goes_on(run, train, SHORT, tmp_path, math.log(3))


def test_a_frozen_backbone_is_solved_unless_steps_are_asked_for(hub: Path) -> None:
    section = {"model": {"name": f"timm:{CNN}"}, "data": {**IMAGES["data"], "dir": str(hub)}}

    def start(**train: int) -> Any:
        given = [Layer("t", {**section, **({"train": train} if train else {})})]
        return resolve(start_layers(None, True, {"method": "freeze-backbone"}, given).layers).recipe

    assert start().start.options["solve"] and not start(epochs=3).start.options["solve"]
    assert start(epochs=3).train.epochs == 3


@pytest.mark.parametrize("samples", [1, 2, 20, 245, 864, 5_000, 50_000, 1_000_000])
def test_the_length_is_a_number_of_steps(samples: int) -> None:
    length = suitable_length(samples)
    steps = length.epochs * math.ceil(samples / length.batch_size)
    assert 4 <= length.batch_size <= 128 and 3 <= length.epochs <= 20 and 2 <= length.patience <= length.epochs
    assert steps >= min(200, 20 * math.ceil(samples / length.batch_size)), "few samples are seen often"
    assert suitable_length(samples, 7).batch_size == 7


def test_published_preprocessing_is_the_librarys_own(tmp_path: Path) -> None:
    """The stored square of a photo, cropped, is pixel by pixel what timm's evaluation transform gives."""
    from timm.data import create_transform

    noise = np.random.default_rng(0)
    for model, (width, height) in ((CNN, (301, 200)), (VIT, (190, 333)), ("resnet18", (400, 400))):
        spec = models.get(f"timm:{model}").meta["weights"].spec
        config = timm.models.get_pretrained_cfg(model)
        low = Image.fromarray(noise.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        image = low.resize((width, height), Image.Resampling.BICUBIC)
        image.save(tmp_path / "x.png")
        transform = create_transform(
            config.input_size, is_training=False, interpolation=config.interpolation, crop_pct=config.crop_pct,
            mean=(0.0,) * 3, std=(1.0,) * 3,
        )  # fmt: skip
        theirs = (transform(image) * 255).round()
        square = decode((tmp_path / "x.png").read_bytes(), "x", 3, spec.square, spec.interpolation)
        start = (spec.square - spec.height) // 2
        ours = square[:, start : start + spec.height, start : start + spec.width].float()
        shifts = [ours.roll((a, b), (1, 2)) - theirs for a in (-1, 0, 1) for b in (-1, 0, 1)]
        inside = min(shift[:, 2:-2, 2:-2].abs().max() for shift in shifts)  # a crop of half a pixel is rounded
        assert spec.interpolation == "bicubic" and inside <= 2


def test_a_foreign_file_gets_the_architectures_preprocessing(hub: Path) -> None:
    photos = {"model": {"image_size": 96}}
    run = assemble(recipe_for("resnet18", "full", hub, photos), measure=False)
    assert run.task.spec.mean == (0.485, 0.456, 0.406) and run.task.spec.height == 96
    assert any("as published" in note for note in run.notes)
    told = assemble(recipe_for("resnet18", "full", hub, photos, {"start": {"preprocessing": "data"}}), measure=False)
    assert told.task.spec.mean != run.task.spec.mean
    assert any("of the train split" in note for note in told.notes)


@pytest.mark.parametrize("side", [96, 224])
def test_a_vision_transformer_at_another_size(side: int, hub: Path) -> None:
    """Its positions are resampled as timm itself resamples them."""
    run = assemble(recipe_for(f"timm:{VIT}", "full", hub, {"model": {"image_size": side}}), measure=False)
    file = hub / f"weights/{models.get(f'timm:{VIT}').meta['weights'].repository}.safetensors"
    from safetensors.torch import load_file
    from timm.layers import resample_abs_pos_embed

    tokens = (side // 16) ** 2
    theirs = resample_abs_pos_embed(load_file(file)["pos_embed"], [side // 16] * 2, num_prefix_tokens=1)
    torch.testing.assert_close(run.model.get_parameter("pos_embed").detach(), theirs)
    assert run.model(torch.zeros(1, 3, side, side)).shape == (1, 3) and theirs.shape[1] == tokens + 1
    assert any("resampled for another image size" in note for note in run.notes)


def test_the_position_tables_of_other_families_are_resampled_by_their_library() -> None:
    """torchvision's ViT, and the relative positions of Swin and BEiT, whose three tokens without a place come last."""
    from timm.layers import resize_rel_pos_bias_table
    from timm.models.beit import Beit
    from timm.models.swin_transformer import SwinTransformer
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    small: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16, "num_classes": 3}
    made = [VisionTransformer(image_size=side, patch_size=16, **small) for side in (64, 96)]
    theirs = interpolate_embeddings(96, 16, made[0].state_dict())["encoder.pos_embedding"]
    torch.testing.assert_close(grown(*made, "tv:vit_b_16")["encoder.pos_embedding"], theirs)
    small = {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "patch_size": 4, "num_classes": 3}
    made = [SwinTransformer(img_size=side, window_size=side // 16, **small) for side in (64, 96)]
    state = grown(*made, "timm:swin_tiny_patch4_window7_224")
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    old, new = (torch.as_tensor(model.state_dict()[name]) for model in made)
    torch.testing.assert_close(state[name], resize_rel_pos_bias_table(old, (6, 6), new.shape))
    small = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 16, "num_classes": 3, "use_abs_pos_emb": False}
    made = [Beit(img_size=side, use_rel_pos_bias=True, **small) for side in (64, 96)]
    torch.nn.init.normal_(made[0].get_parameter(name := "blocks.0.attn.relative_position_bias_table"))
    grown_table = grown(*made, "timm:beit_base_patch16_224")[name]
    assert torch.equal(grown_table[-3:], made[0].get_parameter(name)[-3:])


def grown(old: torch.nn.Module, new: torch.nn.Module, name: str) -> dict[str, torch.Tensor]:
    """The state of `old` for the larger images of `new`, which then runs."""
    state = {key: value.detach().clone() for key, value in old.state_dict().items()}
    assert adapt_positions(state, new, models.get(name).meta)
    new.load_state_dict({**new.state_dict(), **state})
    assert new.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    return state


def test_positions_without_a_square_grid_are_left_alone() -> None:
    assert resample_positions(torch.zeros(1, 12, 4), 16 + 1) is None
    same = torch.randn(1, 50, 4)
    torch.testing.assert_close(resample_positions(same, 50), same)


@pytest.mark.parametrize(("samples", "width", "classes"), [(60, 8, 3), (30, 90, 3), (30, 90, 2)])
def test_the_solved_head_is_scikit_learns(samples: int, width: int, classes: int) -> None:
    """Of few samples in many dimensions too, where the problem is solved in their span."""
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % classes
    x = torch.randn(samples, width, generator=generator) * 3 + 5
    x[:, :classes] += torch.nn.functional.one_hot(y, classes) * 4
    weights = torch.rand(samples, generator=generator) + 0.5
    weight, bias, note = solver(classes, (0.1,), 5000)(x, y, weights, x[:6], y[:6])
    mean, variance = x.double().mean(0), x.double().var(0, correction=0)
    scale = ((samples * variance + 20 * variance.mean()) / (samples + 20)).sqrt()
    theirs = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8)
    theirs.fit(((x - mean) / scale).numpy(), y.numpy(), weights.numpy())
    ours = (x @ weight.T + bias).softmax(1)
    expected = torch.from_numpy(theirs.predict_proba(((x - mean) / scale).numpy()))
    torch.testing.assert_close(ours.double(), expected, atol=3e-4, rtol=0)
    assert "5-fold" in note


def test_a_head_of_many_classes_is_solved_without_warnings_and_says_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_map, "PATIENCE", 0.0)
    monkeypatch.setattr(thread_map, "REPORT_EVERY", 0.0)
    reports: list[tuple[str, int, int | None]] = []
    y = torch.arange(300) % 100
    x = torch.randn(100, 32, generator=torch.Generator().manual_seed(0)).repeat(3, 1) * 5
    x += torch.randn(300, 32, generator=torch.Generator().manual_seed(1))
    with thread_map.progress_listener(lambda *report: reports.append(report)), warnings.catch_warnings():
        warnings.simplefilter("error")
        weight, bias, note = solver(100, (1e-3, 1.0), 100)(x, y, torch.ones(300), x[:0], y[:0])
    assert ((x @ weight.T + bias).argmax(1) == y).double().mean() > 0.95
    assert "3-fold" in note
    done = [count for _, count, _ in reports]
    assert {what for what, _, _ in reports} == {"solving for a head of 100 classes"}
    assert done == sorted(done) and reports[-1][1] == reports[-1][2] and len(done) > 3


@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 0], [2, 2, 0, 0, 1]], ids=["one each", "one class", "uneven"])
def test_a_head_is_solved_for_whatever_there_is(labels: list[int]) -> None:
    y, x = torch.tensor(labels), torch.eye(len(labels), 6)
    weight, bias, _ = solver(4, STRENGTHS, 100)(x, y, torch.ones(len(y)), x[:1], torch.tensor([-1]))
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()
    assert set((x @ weight.T + bias).argmax(1).tolist()) <= set(labels), "never a class without a sample"


def test_published_weights_predict_evaluate_and_export(hub: Path, run_cli: Run, tmp_path: Path) -> None:
    from timm.data import create_transform, resolve_model_data_config

    noise = np.random.default_rng(1)
    for i in range(4):
        folder = tmp_path / "photos" / ("tench", "goldfish")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (170 + 20 * i, 200, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    files = sorted((tmp_path / "photos").rglob("*.png"))
    start = [f"timm:{CNN}", "--pretrained", "--data-dir", hub]
    done = run_cli("predict", *start[:1], *files, *start[1:], "--json", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    weights = hub / f"weights/{models.get(f'timm:{CNN}').meta['weights'].repository}.safetensors"
    theirs = timm.create_model(CNN, checkpoint_path=str(weights)).eval()
    transform = create_transform(**resolve_model_data_config(theirs), is_training=False)
    for line, file in zip(done.stdout.splitlines(), files, strict=True):
        with torch.inference_mode():
            logits = theirs(transform(Image.open(file))[None])
        said = json.loads(line)
        assert said["probability"] == pytest.approx(float(logits.softmax(1).max()), rel=0.05)
    done = run_cli("eval", *start, "--data", "photos", "--split", "train", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["samples"] >= 2, done.stderr
    ship = ("--format", "safetensors", "--samples", 2, "--seconds", 0, "--out", "x")
    done = run_cli("export", *start, "--data", "photos", *ship)
    assert done.returncode == 0 and (tmp_path / "x/labels.json").is_file(), done.stderr
