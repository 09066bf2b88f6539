"""The loop everyone writes for a small GPT: random windows, fp32, AdamW, no tricks. Prints training tokens/s.

python benchmarks/gpt_plain.py DATA_DIR STEPS
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import nn

from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import TextSpec

BATCH, CONTEXT = 12, 64


def main(folder: str, steps: int) -> None:
    torch.manual_seed(0)
    text = (Path(folder) / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    characters = sorted(set(text))
    ids = {c: i for i, c in enumerate(characters)}
    data = torch.tensor([ids[c] for c in text[: int(0.9 * len(text))]])
    model = models.get("gpt-nano")(TextSpec("char", tuple(characters), CONTEXT)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(steps + 3):
        if step == 3:  # the first steps warm up
            clock = time.perf_counter()
        starts = torch.randint(len(data) - CONTEXT, (BATCH,))
        x = torch.stack([data[i : i + CONTEXT] for i in starts])
        y = torch.stack([data[i + 1 : i + 1 + CONTEXT] for i in starts])
        logits = model(x)
        loss = nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    sys.stdout.write(f"{steps * BATCH * CONTEXT / (time.perf_counter() - clock)}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
