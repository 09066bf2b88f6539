"""Architectures of timm as a stranger uses them: a weights file, a few photos, each command as it is typed.

    python benchmarks/timm_walk.py FOLDER [NAME[@SIDE] ...]      some 30 s a name on one quiet core

Each is built by timm with random weights and saved as its owners would; then it is fine-tuned for two steps, once with
a frozen backbone too, evaluated, exported to ONNX (which is proven by onnxruntime) and run from there. A line a name
says what failed, and the last line of what the command said. FOLDER keeps the runs of what failed.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

NAMES = """\
repvit_m0_9@64 crossvit_tiny_240@240 volo_d1_224@224 xcit_nano_12_p16_224@64 swinv2_tiny_window8_256@128 dla46_c@64
inception_v3@128 poolformer_s12@64 maxvit_rmlp_pico_rw_256@256 coatnet_pico_rw_224@224 efficientformer_l1@224
fastvit_t8@64 ghostnet_050@64 hrnet_w18_small@64 mixer_s32_224@224 gmlp_ti16_224@224 eca_nfnet_l0@64 resnest14d@64
eva02_tiny_patch14_224@56 beit_base_patch16_224@64 deit3_small_patch16_224@64 cait_xxs24_224@64 levit_128s@224
mobilevit_xxs@64 tiny_vit_5m_224@224 hiera_tiny_224@224 convnextv2_atto@64 efficientvit_m0@224 vgg11_bn@64 xception41@96
mobileone_s0@64 repvgg_a0@64 vit_small_patch14_reg4_dinov2@56 vit_base_patch16_siglip_224@64 nextvit_small@64
convit_tiny@224 pit_ti_224@224 pvt_v2_b0@64 edgenext_xx_small@64 mvitv2_tiny@224 davit_tiny@224 focalnet_tiny_srf@64
inception_next_atto@64 starnet_s1@64 rdnet_tiny@64 swiftformer_xs@64 shvit_s1@64 tinynet_e@64 hardcorenas_a@64
rexnet_100@64 selecsls42@64 res2net50_14w_8s@64 skresnet18@64 cs3darknet_focus_s@64 hgnetv2_b0@64 mambaout_femto@64
sequencer2d_s@224 tnt_s_patch16_224@224 coat_tiny@224 halonet26t@256 lambda_resnet26t@64 botnet26t_256@256 nest_tiny@224
twins_svt_small@64 visformer_tiny@224 dpn48b@64 ese_vovnet19b_dw@64 nasnetalarge@96
"""


def photos(folder: Path) -> None:
    """Noise around a colour of each of three classes."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for k, name in enumerate(("blue", "green", "red")):
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = draw.integers(0, 160, (80, 90, 3))
                pixels[:, :, 2 - k] += 90
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")


def command(log: Path, *words: object) -> int:
    """The exit code of ``bigmodel WORDS``, in a fork: torch and timm are loaded once."""
    child = os.fork()
    if child == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["bigmodel", *map(str, words)]
        code: object = 70
        try:
            from bigmodel_cli.cli import main

            code = main()
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def with_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """`model` with BatchNorm's statistics of noise, as trained networks have theirs: else RepVGG's outputs overflow."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
    if norms:
        with torch.no_grad():
            model.train()(torch.randn(4, *model.pretrained_cfg["input_size"]))
    return model


def walk(name: str, side: int, root: Path) -> str:
    """What failed, or "" if nothing did."""
    place, data, given = root / name, root / "photos", root / f"{name}.safetensors"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    torch.manual_seed(0)
    model = with_statistics(timm.create_model(name, num_classes=10))
    save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()}, given)
    start = ["finetune", f"timm:{name}", "--from", given, "--data", data, "--size", side, "--batch-size", 4]
    steps = [
        ("finetune", [*start, "--max-steps", 2, "--out", place / "full"]),
        ("frozen", [*start, "--freeze-backbone", "--out", place / "frozen"]),
        ("eval", ["eval", place / "frozen", "--split", "test"]),
        ("export", ["export", place / "full", "--format", "onnx", "--seconds", 0, "--out", place / "shipped"]),
        ("predict", ["predict", place / "shipped", data / "test" / "red" / "0.png"]),
    ]
    try:
        for step, words in steps:
            if code := command(place / f"{step}.log", *words):
                said = (place / f"{step}.log").read_text().strip().splitlines() or [""]
                error = next((line for line in said if line.startswith("error")), said[-1])
                return f"{step}, exit {code}: {error[:200]}"
    finally:
        given.unlink()
    shutil.rmtree(place)
    return ""


def main() -> None:
    root = Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)
    photos(root / "photos")
    sys.stdout.write("| model | side | seconds | failed |\n|---|---|---|---|\n")
    for word in sys.argv[2:] or NAMES.split():
        name, _, side = word.partition("@")
        started = time.perf_counter()
        failed = walk(name, int(side or 224), root)
        sys.stdout.write(f"| `{name}` | {side} | {time.perf_counter() - started:.0f} | {failed} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
