"""Published weights on somebody's own photos: ours by default beside plain scripts, in one run.

    python benchmarks/published.py WEIGHTS DATA [--model timm:NAME]

WEIGHTS is a folder with weights/ as ``finetune --pretrained`` finds them; DATA is a folder with train/ and test/ class
folders. Each row is a process of its own. The test split is read once for each. About 10 minutes on 2 quiet cores
for 300 photos. ``--speed`` times one epoch of a dozen timm models instead, with random weights.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DOZEN = ("resnet18", "resnet50", "mobilenetv3_large_100", "efficientnet_b0", "convnext_tiny", "vit_tiny_patch16_224",
         "swin_tiny_patch4_window7_224", "regnety_008", "densenet121", "vgg11", "mobilenetv4_conv_small",
         "efficientvit_b0")  # fmt: skip
OURS = {"ours": [], "ours, --freeze-backbone": ["--freeze-backbone"], "ours, --method auto": ["--method", "auto"]}
PLAIN = {"plain script": "full", "plain script, frozen": "frozen", "fastai's fine_tune": "fastai"}


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def ours(arguments: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """Fine-tune with our command, then read the test split."""
    command = [sys.executable, "-m", "bigmodel_cli"]
    with tempfile.TemporaryDirectory() as place:
        data = ["--data", str(arguments.data.resolve()), "--data-dir", str(arguments.weights.resolve())]
        start = time.perf_counter()
        run = [*command, "finetune", arguments.model, "--pretrained", *data, *flags, "--out", "run"]
        subprocess.run(run, cwd=place, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        evaluate = [*command, "eval", "run", "--split", "test", "--json"]
        done = subprocess.run(evaluate, cwd=place, check=True, stdout=subprocess.PIPE, text=True)
    accuracy = json.loads(done.stdout)["headline"]["accuracy"]
    return {"accuracy": accuracy["value"], "low": accuracy["low"], "high": accuracy["high"],
            "seconds": seconds, "peak_gb": peak}  # fmt: skip


def plain(arguments: argparse.Namespace, how: str) -> dict[str, Any]:
    """The script that everyone writes: AdamW 1e-3, batches of 32, two epochs; or fastai's ``fine_tune`` written out.

    fastai's: one epoch of the frozen network at 2e-3, then two of all of it at 1e-5 to 1e-3, one-cycle each.
    """
    import timm
    import torch
    from torchvision.datasets import ImageFolder

    torch.manual_seed(0)
    start = time.perf_counter()
    name = arguments.model.removeprefix("timm:")
    config = timm.models.get_pretrained_cfg(name)
    file = arguments.weights / f"weights/{config.hf_hub_id}.safetensors"
    transform = timm.data.create_transform(
        config.input_size, is_training=False, interpolation=config.interpolation, mean=config.mean, std=config.std,
        crop_pct=config.crop_pct,
    )  # fmt: skip
    sets = {split: ImageFolder(arguments.data / split, transform) for split in ("train", "test")}
    classes = len(sets["train"].classes)
    model = timm.create_model(name, pretrained=True, num_classes=classes, pretrained_cfg_overlay={"file": str(file)})
    head = model.get_classifier()
    backbone = [p for n, p in model.named_parameters() if not any(p is q for q in head.parameters())]

    def train(epochs: int, groups: list[dict[str, Any]], frozen: bool, cycle: bool) -> None:
        for p in backbone:
            p.requires_grad_(not frozen)
        optimizer = torch.optim.AdamW(groups)
        loader = torch.utils.data.DataLoader(sets["train"], 32, shuffle=True, num_workers=1)
        steps = epochs * math.ceil(len(sets["train"]) / 32)
        rates = [group["lr"] for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps) if cycle else None
        for _ in range(epochs):
            model.train(not frozen)
            for images, labels in loader:
                loss = torch.nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if schedule is not None:
                    schedule.step()

    everything = [{"params": backbone, "lr": 1e-3}, {"params": list(head.parameters()), "lr": 1e-3}]
    if how == "fastai":
        third = max(1, len(backbone) // 3)
        layers = [backbone[:third], backbone[third : 2 * third], [*backbone[2 * third :], *head.parameters()]]
        train(1, [{"params": list(head.parameters()), "lr": 2e-3}], True, True)
        train(2, [{"params": p, "lr": lr} for p, lr in zip(layers, (1e-5, 1e-4, 1e-3), strict=True)], False, True)
    else:
        train(2, everything if how == "full" else everything[1:], how == "frozen", False)
    seconds = time.perf_counter() - start
    model.eval()
    with torch.inference_mode():
        loader = torch.utils.data.DataLoader(sets["test"], 32)
        right = torch.cat([model(images).argmax(1) == labels for images, labels in loader]).double()
    half = 1.96 * math.sqrt(right.var().item() / len(right)) if len(right) > 1 else 0.0
    mean, peak = right.mean().item(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"accuracy": mean, "low": mean - half, "high": mean + half, "seconds": seconds, "peak_gb": peak}


def speed(arguments: argparse.Namespace) -> list[str]:
    """One epoch of fine-tuning a dozen networks: ours, and the plain loop on the same images in memory."""
    import timm
    import torch

    lines = ["| model | plain s | ours s | times as fast |", "|---|---|---|---|"]
    for name in DOZEN:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as place:
            model = timm.create_model(name)
            target = Path(place) / f"weights/{timm.models.get_pretrained_cfg(name).hf_hub_id}.safetensors"
            target.parent.mkdir(parents=True)
            from safetensors.torch import save_file

            save_file(model.state_dict(), target)
            data = ["--data", "synthetic_images", "--set", "data.count=128", "--set", "data.classes=2"]
            flags = ["--data-dir", place, "--epochs", "1", "--batch-size", "32", "--json", "--out", f"{place}/run"]
            command = [sys.executable, "-m", "bigmodel_cli", "finetune", f"timm:{name}", "--pretrained", *data, *flags]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=place)
        epoch = next(e for e in map(json.loads, done.stdout.splitlines()) if e.get("event") == "epoch")
        images, labels = torch.randn(128, 3, 224, 224), torch.arange(128) % 2
        optimizer, clock = torch.optim.AdamW(model.parameters(), 1e-3), time.perf_counter()
        for part, answer in zip(images.split(32), labels.split(32), strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(part), answer).backward()
            optimizer.step()
        theirs, mine = time.perf_counter() - clock, 128 / epoch["images_per_second"]
        lines.append(f"| `{name}` | {theirs:.1f} | {mine:.1f} | {theirs / mine:.2f} |")
        say(lines[-1])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--row", choices=list(PLAIN))
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    if arguments.speed:
        speed(arguments)
        return
    if arguments.row:
        say(json.dumps(plain(arguments, PLAIN[arguments.row])))
        return
    say("| row | test accuracy (95%) | seconds | peak memory |\n|---|---|---|---|")
    for row in (*OURS, *PLAIN):
        if row in OURS:
            found = ours(arguments, OURS[row])
        else:
            done = subprocess.run(
                [sys.executable, *sys.argv, "--row", row], check=True, stdout=subprocess.PIPE, text=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
        interval = f"{found['accuracy']:.2%} ({found['low']:.2%} to {found['high']:.2%})"
        say(f"| {row} | {interval} | {found['seconds']:.0f} | {found['peak_gb']:.1f} GB |")


if __name__ == "__main__":
    main()
