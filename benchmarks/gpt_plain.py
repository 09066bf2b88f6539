"""What nanoGPT does on a CPU, in plain torch: fp32, not compiled, a random batch a step, learned positions, AdamW.

The model, the initialisation, the optimizer's groups, the schedule and the loop are those of nanoGPT's
train.py and model.py at `config/train_shakespeare_char.py` with its flags for a CPU (Karpathy 2022, MIT licence):
4 layers, 4 heads, 128 wide, context 64, batch 12, no dropout, no bias, AdamW at 1e-3 with betas (0.9, 0.99).

python benchmarks/gpt_plain.py DATA_DIR STEPS       prints training tokens a second
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
RATE, LEAST, WARMUP, TOTAL = 1e-3, 1e-4, 100, 2000


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.c_fc, self.gelu = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.GELU()
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).split(WIDTH, 2)
        q, k, v = (y.view(b, t, HEADS, c // HEADS).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))
        return x + self.down(self.gelu(self.c_fc(self.ln_2(x))))  # type: ignore[no-any-return]


class Gpt(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f, self.lm_head = nn.LayerNorm(WIDTH, bias=False), nn.Linear(WIDTH, vocabulary, bias=False)
        self.wte.weight = self.lm_head.weight
        for name, p in self.named_parameters():
            if p.dim() == 2:
                last = name.endswith(("c_proj.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if last else 0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def rate(step: int) -> float:
    """A linear climb, then half a cosine."""
    if step < WARMUP:
        return RATE * (step + 1) / (WARMUP + 1)
    done = (step - WARMUP) / (TOTAL - WARMUP)
    return LEAST + 0.5 * (1 + math.cos(math.pi * done)) * (RATE - LEAST)


def main(folder: str, steps: int) -> None:
    torch.manual_seed(1337)
    text = (Path(folder) / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    ids = {c: i for i, c in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[c] for c in text[: int(0.9 * len(text))]])
    model = Gpt(len(ids)).train()
    matrices, rest = ([p for p in model.parameters() if (p.dim() > 1) is two] for two in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99))

    def batch() -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(data) - CONTEXT, (BATCH,))
        x = torch.stack([data[i : i + CONTEXT] for i in starts])
        return x, torch.stack([data[i + 1 : i + 1 + CONTEXT] for i in starts])

    x, y = batch()
    for step in range(steps + 3):
        if step == 3:  # the first steps warm up
            clock = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = model(x, y)
        x, y = batch()  # as nanoGPT: the next one is drawn while a GPU would work
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    sys.stdout.write(f"{steps * BATCH * CONTEXT / (time.perf_counter() - clock)}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
