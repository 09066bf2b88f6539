"""timm's and torchvision's models: names, heads, published weights from a hub of our own, every command on them."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import figures
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import conv2d
from web import answering

from bigmodel_cli.commands.arguments import options
from bigmodel_cli.commands.training.finetune_layers import start_layers
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.engine.build.compatibility import rename
from bigmodel_cli.engine.build.digest import digest
from bigmodel_cli.engine.build.load import load_trained
from bigmodel_cli.engine.build.published_weights import load_pretrained
from bigmodel_cli.engine.build.transfer import adapt_input_channels
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.training.assemble import assemble, execute
from bigmodel_cli.models.layers.initialise import zero_head
from bigmodel_cli.models.layers.meta_init import init_on_meta

timm = pytest.importorskip("timm")
SPEC = ImageSpec(1, 64, 64, ("cat", "dog", "cow"))
SHORT = ["--max-steps", 1, "--batch-size", 4, "--precision", "fp32"]


def test_names_in_the_source_are_the_libraries_own() -> None:
    assert sorted(n.removeprefix("timm:") for n in models.members("timm")) == sorted(timm.list_models())
    theirs = torchvision.models.list_models(module=torchvision.models)
    assert sorted(n.removeprefix("tv:") for n in models.members("tv")) == sorted(theirs)


def test_names_are_found_suggested_and_completed(run_cli: Any) -> None:
    found = run_cli("models", "--search", "vit_tiny_patch16")
    assert found.returncode == 0 and "timm:vit_tiny_patch16_224" in found.stdout and "resnet" not in found.stdout
    for name, expected in [
        ("timm:resnet81", "unknown model 'timm:resnet81'; did you mean resnet"),
        ("convnext_atto", "did you mean timm:convnext_atto?"),
        ("timm:resnet18.nowhere", "no such weights; expected one of a"),
        ("tv:resnet81", "did you mean resnet"),
        ("hub:resnet18", "unknown model 'hub:resnet18'"),
    ]:
        with pytest.raises(InputError) as caught:
            models.get(name)
        assert expected in caught.value.line
    complete = options.complete("models")
    assert {"tv:resnet18", "tv:resnet101"} <= set(complete("tv:resnet1")) and "resnet20" in complete("res")


def test_a_missing_library_names_its_extra() -> None:
    program = """import sys; sys.modules["timm"] = None
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.errors import MachineError
try: models.get("timm:resnet18")
except MachineError as error: print(error.hint)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == install_line("timm") + "\n", done.stderr


FEW = ["timm:resnet18", "timm:vit_tiny_patch16_224", "timm:convnext_atto", "timm:swin_s3_tiny_224", "timm:vgg11",
       "timm:efficientnet_b0", "tv:resnet18", "tv:mobilenet_v2", "tv:squeezenet1_1", "tv:vit_b_16", "tv:densenet121",
       "tv:googlenet"]  # fmt: skip


@pytest.mark.parametrize("name", FEW)
def test_head_and_first_layer_are_what_they_say(name: str) -> None:
    entry = models.get(name)
    side = 224 if "224" in name else 64
    spec = SPEC.with_(height=side, width=side)
    with init_on_meta():
        model = entry(spec).eval()
        assert model(torch.zeros(2, 1, side, side)).shape == (2, 3)
    head = model.get_submodule(entry.meta["head"])
    assert 3 in (getattr(head, "out_features", 0), getattr(head, "out_channels", 0))
    assert model.get_submodule(entry.meta["backbone_first"]).weight.shape[1] == 1


def test_models_that_do_not_fit_say_why() -> None:
    with pytest.raises(InputError, match="timm:swin_s3_tiny_224 for 1x0x0 images"), torch.device("meta"):
        models.get("timm:swin_s3_tiny_224")(SPEC.with_(height=0, width=0))
    for name in ("mobilenetv5_300m_enc", "gemma4_vit_167m_enc", "qwen3_vit_88m_enc"):  # the first two name one
        with pytest.raises(InputError, match="has no head"), torch.device("meta"):
            models.get(f"timm:{name}")(SPEC.with_(height=96, width=96, channels=3))
    for name, side in (("timm:halonet26t", 64), ("tv:inception_v3", 64)):  # which say so when they are called
        with pytest.raises(InputError, match=f"{name} for 1x{side}x{side} images: ") as caught:
            models.get(name)(SPEC.with_(height=side, width=side))
        assert caught.value.hint == "another size"
    with pytest.raises(InputError, match="has no drop_path"), torch.device("meta"):
        models.get("timm:vgg11")(SPEC, drop_path=0.1)


@pytest.mark.parametrize("name", ["levit_128s", "repvit_m0_9"], ids=["attributes", "ends of sequences"])
def test_several_heads_are_fine_tuned_as_one(name: str, tmp_path: Path) -> None:
    """Those of a distilled network: published weights answer as timm's, and a new pair knows nothing and learns."""
    entry = models.get(f"timm:{name}")
    theirs = timm.create_model(name).eval()
    file = tmp_path / f"weights/{entry.meta['weights'].repository}.safetensors"
    file.parent.mkdir(parents=True)
    save_file(theirs.state_dict(), file)
    data = {"name": "synthetic_images", "channels": 1, "classes": 3, "count": 8, "dir": str(tmp_path)}
    values = {"model": {"name": f"timm:{name}"}, "start": {"pretrained": True}, "data": data}
    recipe = resolve([Layer("t", {**values, "train": {"batch_size": 4, "max_steps": 2}})]).recipe
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(load_pretrained(recipe).model(images), theirs(images))
    run = assemble(recipe, measure=False)
    assert not run.model.eval()(images[:, :1]).any()
    assert execute(run)
    both = run.model.get_submodule(entry.meta["head"])
    assert isinstance(both, torch.nn.ModuleList) and [bool(head.weight.any()) for head in both] == [True, True]
    assert not {"head.linear.weight", "head_dist.linear.weight"} & set(run.model.state_dict())
    assert models.get("timm:crossvit_9_240").meta["head"] == "head", "they are a list already"
    lists = models.get("timm:efficientvim_m1_dist")
    assert lists.meta["renames"] == {"heads.": "all_heads.0.", "heads_dist.": "all_heads.1."}
    stages = lists(SPEC).eval()
    zero_head(stages, lists.meta["head"])
    assert not stages(images[:, :1, :64, :64]).any(), "two lists, a head of each for every stage"
    assert models.get("timm:csatv2").meta["first_layers"] == (), "it sees no image, but its cosine transform"


def test_a_checkpoint_with_timms_names_of_the_heads_loads_and_resumes(tmp_path: Path) -> None:
    """EfficientViM's distilled networks kept them once, though their heads are gathered in a list now."""
    values = {"model": {"name": "timm:efficientvim_m1_dist"}, "data": {"name": "synthetic_images", "classes": 3}}
    recipe = resolve([Layer("t", {**values, "train": {"batch_size": 4, "max_steps": 2}})]).recipe
    run = assemble(recipe, measure=False)
    state = run.state()
    rename(state["model"], {"all_heads.0.": "heads.", "all_heads.1.": "heads_dist."})
    assert {"heads.0.bias", "heads_dist.3.bias"} <= state["model"].keys() and "all_heads.0.0.bias" not in state["model"]
    checkpoint.save(tmp_path / "old.pt", state)
    assert digest(load_trained(tmp_path / "old.pt").model) == digest(run.model)
    resumed = assemble(recipe, checkpoint.load(tmp_path / "old.pt"), measure=False)
    assert digest(resumed.model) == digest(run.model)


def test_a_grey_image_gives_the_same_activations_as_one_of_equal_channels() -> None:
    """Also where several layers see the image, or one sees the pixels of a block side by side."""
    entry = models.get("timm:mobileone_s0")
    colour, grey = (entry(SPEC.with_(channels=channels)).eval() for channels in (3, 1))
    state, image = dict(colour.state_dict()), torch.randn(2, 1, 64, 64)
    (line,) = adapt_input_channels(state, grey.state_dict(), entry.meta, 1)
    assert "summed over the input channels (3 -> 1)" in line
    grey.load_state_dict(state)
    torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)
    weight, blocks = torch.randn(4, 48, 3, 3), timm.layers.SpaceToDepth(4)
    filters = {"stem.weight": weight}
    adapt_input_channels(filters, {"stem.weight": torch.empty(4, 16, 3, 3)}, {"backbone_first": "stem"}, 1)
    expected = conv2d(blocks(image.expand(-1, 3, -1, -1)), weight)
    torch.testing.assert_close(conv2d(blocks(image), filters["stem.weight"]), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A hub on 127.0.0.1 with random weights of two models, as the real one serves them."""
    files: dict[str, bytes] = {}
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    for name in ("test_resnet", "test_vit"):
        repository = models.get(f"timm:{name}").meta["weights"].repository
        save_file(timm.create_model(name).state_dict(), folder / "x.safetensors")
        raw = (folder / "x.safetensors").read_bytes()
        files[f"/{repository}/resolve/c0ffee/model.safetensors"] = raw
        entry = {"rfilename": "model.safetensors", "lfs": {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}}
        about = {"sha": "c0ffee", "siblings": [{"rfilename": "README.md"}, entry]}
        files[f"/api/models/{repository}/revision/main?blobs=true"] = json.dumps(about).encode()

    with answering(lambda path: (200, files[path], {}) if path in files else (404, b"", {})) as address:
        yield address, files


def at_hub(address: str, tmp_path: Path) -> dict[str, Any]:
    return {"HF_ENDPOINT": address, "BIGMODEL_DATA": tmp_path, "HF_HOME": tmp_path}


def photos(folder: Path) -> Path:
    """Class folders of twelve images."""
    for i, name in enumerate(("cat", "cow", "dog")):
        for split, count in (("train", 3), ("val", 1)):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for j in range(count):
                Image.new("RGB", (240, 200), (80 * i, 60 * j, 0)).save(folder / split / name / f"{j}.jpg")
    return folder


SHIPPED = "pt2" if figures.SOAK else "safetensors"
"""pt2 of a vision transformer takes a quarter of a minute; tests/export has it of smaller models."""


@pytest.mark.parametrize(
    ("name", "method", "then"),
    [
        ("test_resnet", ["--method", "full"], [["eval", "tuned"]]),
        ("test_vit", ["--lora", 4],
         [["eval", "tuned"], ["export", "tuned", "--format", SHIPPED, "--samples", 2, "--seconds", 0]]),
    ],
    ids=["resnet", "vit"],
)  # fmt: skip
def test_published_weights_fine_tune_evaluate_and_export(
    name: str, method: list[Any], then: list[list[Any]], hub: Any, run_cli: Any, tmp_path: Path
) -> None:
    """The weights are fetched once, and found where they lie after that."""
    address, files = hub
    model, source = f"timm:{name}", models.get(f"timm:{name}").meta["weights"]
    start = [model, "--pretrained", "--data", photos(tmp_path / "photos"), "--data-dir", tmp_path, *SHORT]
    grey = ["--freeze-backbone", "--set", "data.channels=1", "--out", "frozen"]
    done = run_cli("finetune", *start, *grey, variables=at_hub(address, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "head replaced: 1000 classes in the checkpoint, 3 now" in done.stderr
    assert "filters summed over the input channels (3 -> 1)" in done.stderr and "byte-identical" in done.stdout
    fetched = tmp_path / f"weights/{source.repository}.safetensors"
    assert fetched.read_bytes() == files[f"/{source.repository}/resolve/c0ffee/model.safetensors"]
    original = timm.create_model(name, pretrained=False, checkpoint_path=str(fetched)).state_dict()
    frozen = load_trained(tmp_path / "frozen")
    same = [k for k, v in frozen.model.state_dict().items() if torch.equal(v, original[k])]
    assert len(same) == len(original) - 3  # but for the head's two and the first layer's filters
    assert frozen.task.spec.height == 160
    assert frozen.task.spec.mean[0] == pytest.approx(sum(source.spec.mean) / 3)
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    for command in (["finetune", *start, *method, "--out", "tuned"], *then):
        done = run_cli(*command, variables=offline)
        assert done.returncode == 0, done.stderr


def test_a_file_that_is_not_what_the_hub_says_is_refused(hub: Any, run_cli: Any, tmp_path: Path) -> None:
    address, files = hub
    path = "/timm/test_vit.r160_in1k/resolve/c0ffee/model.safetensors"
    whole = files[path]
    files[path] = whole[:-1] + bytes([whole[-1] ^ 1])
    try:
        done = run_cli("finetune", "timm:test_vit", "--pretrained", variables=at_hub(address, tmp_path))
    finally:
        files[path] = whole
    assert done.returncode == 3 and "SHA-256" in done.stderr and not list((tmp_path / "weights").rglob("*.*"))


@pytest.mark.parametrize("arguments", [[], ["--offline"]], ids=["closed port", "offline"])
def test_without_a_network_the_no_is_quick_and_says_what_to_do(
    arguments: list[str], run_cli: Any, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = at_hub(f"http://127.0.0.1:{port}", tmp_path)
    clock = time.monotonic()
    done = run_cli("finetune", "timm:resnet18", "--pretrained", *arguments, variables=env)
    assert done.returncode == 3 and "resnet18.a1_in1k" in done.stderr
    assert time.monotonic() - clock < 40  # five seconds past the imports, which a busy machine makes slow
    assert (
        f"put https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors at {tmp_path}" in done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_no_weights_are_known_for_ours(run_cli: Any) -> None:
    done = run_cli("finetune", "resnet20", "--pretrained")
    assert done.returncode == 2 and "no weights are known for resnet20" in done.stderr
    for model, path, pretrained, expected in [
        ("timm:resnet18", Path("x.pt"), True, "--from and --pretrained together"),
        ("timm:resnet18", None, False, "no weights to start from"),
    ]:
        with pytest.raises(InputError, match=expected):
            start_layers(path, pretrained, {"method": "full"}, [Layer("MODEL", {"model": {"name": model}})])


def test_torchvisions_own_weights_are_found_beside_ours(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.squeezenet1_1()
    file = models.get("tv:squeezenet1_1").meta["weights"]
    assert file.address.startswith("https://") and len(file.digest) == 8
    local = tmp_path / "weights/torchvision" / file.file
    local.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), local)
    layer = {
        "model": {"name": "tv:squeezenet1_1"},
        "start": {"pretrained": True},
        "data": {"name": "digits", "dir": str(tmp_path)},
    }
    run = assemble(resolve([Layer("t", layer)]).recipe, measure=False)
    assert run.task.spec.height == 224 and run.model.get_submodule("classifier.1").out_channels == 10
    assert torch.equal(run.model.get_parameter("features.12.expand3x3.weight"), theirs.features[12].expand3x3.weight)
