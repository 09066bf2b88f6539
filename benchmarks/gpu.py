"""`make gpu`: every CUDA path, measured on one GPU in under nine minutes; writes RESULTS-gpu.md as it goes.

    python benchmarks/gpu.py --pack FOLDER       # on a machine with the data: what the GPU's machine must be given
    python benchmarks/gpu.py --data FOLDER       # there: all steps, those of most worth first
    python benchmarks/gpu.py --small             # the same program at small sizes, on any machine

Each step is a process of its own with a limit of its own, so none can take the others with it. Figures are kept in
a JSON file beside the table: a second call does only the steps that have none (``--again STEP`` for one that has).
It needs torch, torchvision, timm, typer, rich, safetensors and scikit-learn, and no installed bigmodel.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PHOTO_SIDE = 240  # pixels of a packed photo's shorter side: more than the 224 that training crops
PACK_LIMIT = 57 * 2**20


@dataclass(frozen=True)
class Step:
    """A function of gpu_steps.py, what it shows, and the seconds it may take on a GPU.

    Steps that time nothing run side by side, at the beginning.
    """

    name: str
    shows: str
    seconds: int
    timed: bool = True


STEPS = (
    Step("tests", "The tests marked `gpu`", 170, timed=False),
    Step("resume", "A run stopped by SIGTERM and resumed, against one that was not", 170, timed=False),
    Step("export", "AOTInductor and ONNX", 170, timed=False),
    Step("nccl", "One rank: DDP and FSDP2", 100, timed=False),
    Step("compile", "Compilers: the first steps", 170, timed=False),
    Step("machine", "The machine", 40),
    Step("gpt2", "GPT-2 124M, context 1,024, on generated tokens", 80),
    Step("resnet50", "ResNet-50 at 224 x 224 on generated images", 80),
    Step("finetune", "EfficientNet-Lite0 on photos of cats and dogs", 110),
    Step("airbench", "CIFAR-10 (as JPEGs) with the airbench network", 90),
    Step("plan", "`plan` for this GPU against measured steps", 50),
    Step("mnist", "`train cnn` and `train resnet18` on MNIST", 40),
    Step("generate", "GPT-2 124M writes text with its key-value cache", 40),
)


def pack(folder: Path) -> None:
    """Gather the data in `folder`: photos are scaled down, the rest is copied.

    Raises:
        SystemExit: it is more than PACK_LIMIT bytes.
    """
    from PIL import Image

    data = Path(os.environ.get("BIGMODEL_DATA") or HERE.parents[1] / "shared" / "data")
    weights = data.parent / "weights" / "tf_efficientnet_lite0.safetensors"
    shutil.copytree(data / "mnist", folder / "mnist", dirs_exist_ok=True, copy_function=shutil.copyfile)
    (folder / "tinyshakespeare").mkdir(parents=True, exist_ok=True)
    for file in (data / "cifar10-images.tar.xz", data / "tinyshakespeare" / "input.txt", weights):
        shutil.copyfile(file, folder / file.relative_to(data if data in file.parents else weights.parent))
    for photo in sorted((data / "cats-dogs").rglob("*.jpg")):
        image = Image.open(photo).convert("RGB")
        scale = PHOTO_SIDE / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        target = folder / photo.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        out = io.BytesIO()
        (image.resize(size, Image.Resampling.LANCZOS) if scale < 1 else image).save(out, "JPEG", quality=85)
        target.write_bytes(out.getvalue())
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    sys.stdout.write(f"{folder}: {total / 2**20:.1f} MiB\n")
    if total > PACK_LIMIT:
        sys.exit(f"more than {PACK_LIMIT / 2**20:.0f} MiB")


def run_step(step: Step, data: Path, small: bool) -> dict[str, Any]:
    """Run one step to its end or its limit. Returns its rows, or what went wrong, and its seconds."""
    command = [sys.executable, str(HERE / "gpu_steps.py"), step.name, str(data)] + ["--small"] * small
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    clock = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=600 if small else step.seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        output += f"\nstopped after {step.seconds} s"
    rows = [json.loads(line) for line in output.splitlines() if line.startswith('{"row": ')]
    found: dict[str, Any] = {"rows": [r["row"] for r in rows], "seconds": time.perf_counter() - clock}
    if process.returncode:
        found["problem"] = output[-6000:]
    return found


def table(results: dict[str, Any]) -> str:
    """RESULTS-gpu.md: the circumstances, then a table of each step that was run."""
    lines = ["# Measured on a GPU by `make gpu`", "", results["circumstances"], ""]
    for step in STEPS:
        found = results["steps"].get(step.name)
        if found is None:
            continue
        lines += [f"## {step.shows}", "", "| what | figure |", "|---|---|"]
        lines += [f"| {what} | {figure} |" for what, figure in found["rows"]]
        if "problem" in found:
            last = found["problem"].strip().splitlines()[-1].replace("|", "\\|")
            lines.append(f"| **did not end well** | {last} |")
        lines += ["", f"{found['seconds']:.0f} s.", ""]
    return "\n".join(lines)


def circumstances(small: bool) -> str:
    import torch
    import torchvision

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    size = "; small sizes, which show that the program works and nothing else" if small else ""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {device}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}{size}. Each row is one run, seed 0."
    )


class Results:
    """What is known so far, kept in a JSON file beside the table."""

    def __init__(self, out: Path, small: bool) -> None:
        self.out, self.kept = out, out.with_suffix(".json")
        self.values: dict[str, Any] = json.loads(self.kept.read_text()) if self.kept.exists() else {"steps": {}}
        self.values["circumstances"] = circumstances(small)
        self.lock = threading.Lock()

    def missing(self, step: Step) -> bool:
        return "problem" in self.values["steps"].get(step.name, {"problem": ""})

    def add(self, step: Step, found: dict[str, Any]) -> None:
        with self.lock:
            self.values["steps"][step.name] = found
            self.kept.write_text(json.dumps(self.values, indent=1) + "\n")
            self.out.write_text(table(self.values))
            for what, figure in found["rows"]:
                sys.stdout.write(f"{step.name}: {what}: {figure}\n")
            sys.stdout.write(f"{step.name}: {found['seconds']:.0f} s\n{found.get('problem', '')[-1500:]}\n")
            sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="gather the data there and end")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="what --pack gathered")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS-gpu.md")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, default=520, help="no step begins that might end later")
    parser.add_argument("--only", nargs="*", help="these steps")
    parser.add_argument("--again", nargs="*", default=[], help="these steps although they have figures")
    given = parser.parse_args()
    if given.pack:
        return pack(given.pack)
    began, results, data = time.perf_counter(), Results(given.out, given.small), given.data or Path()
    chosen = [s for s in STEPS if s.name in given.again
              or (results.missing(s) and (given.only is None or s.name in given.only))]  # fmt: skip
    side_by_side = [s for s in chosen if not s.timed]
    with ThreadPoolExecutor(1 if given.small else len(STEPS)) as pool:
        for _ in pool.map(lambda step: results.add(step, run_step(step, data, given.small)), side_by_side):
            pass
    for step in (s for s in chosen if s.timed):
        if given.small or time.perf_counter() - began + step.seconds < given.seconds:
            results.add(step, run_step(step, data, given.small))
    failed = [name for name, found in results.values["steps"].items() if "problem" in found]
    if failed:
        sys.exit(f"did not end well: {', '.join(failed)}")


if __name__ == "__main__":
    main()
