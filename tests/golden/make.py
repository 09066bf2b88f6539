"""Writes the golden files of the current format version: a tiny checkpoint, and an input with its logits.

Run once for each new version, from the root of the repository, and never again for
an old one: what a released version wrote must load with the same logits for ever.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.build.load import load_trained
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.training.assemble import assemble
from bigmodel_cli.engine.training.loop import fit

HERE = Path(__file__).parent


def main() -> None:
    path = HERE / f"v{checkpoint.VERSION}.pt"
    if path.exists():
        raise SystemExit(f"{path} is golden: it is never written again")
    values = {
        "model": {"name": "mlp", "hidden": [16, 12]},
        "data": {"name": "digits"},
        "train": {"epochs": 1, "ema_decay": 0.9},
        "placement": {"device": "cpu", "threads": 1},
    }
    run = assemble(resolve([Layer("golden", values)]).recipe)
    fit(run)
    checkpoint.save(path, run.state())
    trained = load_trained(path)
    picture = run.val.gather(torch.arange(8))
    with torch.inference_mode():
        logits = trained.model(trained.task.prepare(picture)["image"])
    save_file({"picture": picture["image"], "logits": logits}, path.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
