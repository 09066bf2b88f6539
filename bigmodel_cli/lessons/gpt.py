"""Lesson: a small GPT learns to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.registry import data, lessons, models, optimizers
from bigmodel_cli.core.tokenizers.tokens import tokenizer
from bigmodel_cli.lessons.lesson import Result

STAGES, BATCH, PROMPT = (0, 50, 160), 12, "One morning a "


@lessons.register(
    order=15,
    formula="loss = -log p(next token | tokens before it) (Radford et al. 2018)",
    page="docs/text.md",
    more="bigmodel train gpt-nano",
)
def gpt() -> Result:
    """Train gpt-nano on the built-in stories, and let it write before, during and after."""
    bundle = data.get("tales")(Path())
    model = models.get("gpt-nano")(bundle.spec)
    source = bundle.load["train"]()
    optimizer = optimizers.get("adamw")(list(model.named_parameters()), lr=2e-3)
    curve: list[float] = []
    rows = []
    for begin, end in zip((0, *STAGES), STAGES, strict=False):
        model.train()
        for _ in range(end - begin):
            tokens = source.gather(torch.randint(0, len(source) - 1, (BATCH,)))["tokens"].long()
            tokens = tokens[:, : bundle.spec.context + 1]
            logits = model(tokens[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        rows.append((str(end), f"{curve[-1]:.2f}" if curve else "", _write(model.eval(), bundle.spec)))

    def draw(axes: Any) -> None:
        axes.plot(curve)
        axes.axhline(torch.log(torch.tensor(float(len(bundle.spec.vocabulary)))), ls="--", color="0.6")
        axes.set(xlabel="step", ylabel="loss, nats per character", title="dashed: guessing, the log of the alphabet")

    says = [
        "it predicts the next character, nothing else; first come letters, then words, then sentences",
        f"{sum(p.numel() for p in model.parameters()):,} parameters, a text of {len(source.tokens):,} characters",
    ]
    return Result(says, ("step", "loss", "it writes"), rows, draw, values={"curve": curve})


@torch.inference_mode()
def _write(model: nn.Module, spec: Any, length: int = 90) -> str:
    """`PROMPT` continued by `length` characters, drawn at temperature 0.7."""
    known = tokenizer(spec)
    ids = torch.tensor([list(known.encode(PROMPT))])
    for _ in range(length):
        logits: Tensor = model(ids[:, -spec.context :])[0, -1] / 0.7
        ids = torch.cat([ids, torch.multinomial(logits.softmax(0), 1)[None]], 1)
    return known.decode(ids[0].tolist()).replace("\n", " ")
