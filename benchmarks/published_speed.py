"""Fine-tuning a dozen timm models with random weights: our steps beside a plain loop's, for ``published.py``."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

DOZEN = (
    "resnet18", "resnet50", "mobilenetv3_large_100", "efficientnet_b0", "convnext_tiny", "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224", "regnety_008", "densenet121", "vgg11", "mobilenetv4_conv_small", "efficientvit_b0",
)  # fmt: skip
BATCH, STEPS = 16, 4


def speed(names: Sequence[str], say: Callable[[str], None]) -> None:
    """A line for each model: milliseconds an image in training, ours as ``finetune`` reports them, theirs in a loop.

    Both train on the same number of images that lie in memory, at 224 pixels in batches of BATCH, the first step of the
    plain loop left out. Ours measures the machine first, as it does in any run that is long enough to repay it.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    say("| model | plain loop, ms an image | ours, ms an image | times as fast |\n|---|---|---|---|")
    for name in names:
        torch.manual_seed(0)
        model = timm.create_model(name)
        with tempfile.TemporaryDirectory() as place:
            target = Path(place) / f"weights/{timm.models.get_pretrained_cfg(name).hf_hub_id}.safetensors"
            target.parent.mkdir(parents=True)
            save_file(model.state_dict(), target)
            count = BATCH * STEPS * 5 // 4
            data = ["--data", "synthetic_images", "--set", f"data.count={count}", "--set", "data.classes=2"]
            flags = [
                "--data-dir",
                place,
                "--epochs",
                "2",
                "--batch-size",
                str(BATCH),
                "--json",
                "--out",
                f"{place}/run",
            ]
            command = [sys.executable, "-m", "bigmodel_cli", "finetune", f"timm:{name}", "--pretrained", *data, *flags]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=place)
        epochs = [e for e in map(json.loads, done.stdout.splitlines()) if e.get("event") == "epoch"]
        mine = 1000 / epochs[-1]["images_per_second"]
        images, labels = torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH) % 2
        optimizer, seconds = torch.optim.AdamW(model.train().parameters(), 1e-3), []
        for _ in range(STEPS + 1):
            clock = time.perf_counter()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            seconds.append(time.perf_counter() - clock)
        theirs = 1000 * sum(seconds[1:]) / (BATCH * STEPS)
        say(f"| `{name}` | {theirs:.0f} | {mine:.0f} | {theirs / mine:.2f} |")
