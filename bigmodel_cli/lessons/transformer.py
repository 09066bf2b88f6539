"""Lesson: attention, learning to read a sequence backwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.registry import lessons
from bigmodel_cli.lessons.lesson import Result, fit, percent

LENGTH, LETTERS, WIDTH = 8, 12, 32


class Attention(nn.Module):
    """One head of attention from output positions to input letters: (B,T) ids -> (B,T,letters) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(LETTERS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.head = nn.Linear(WIDTH, LETTERS)
        self.weights = torch.empty(0)

    def forward(self, letters: Tensor) -> Tensor:
        places = self.place(torch.arange(LENGTH))
        keys = self.letter(letters) + places
        scores = self.query(places) @ self.key(keys).transpose(1, 2) / WIDTH**0.5
        self.weights = scores.softmax(-1)
        return self.head(self.weights @ self.value(self.letter(letters)))  # type: ignore[no-any-return]


def _loss(logits: Tensor, letters: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), letters.flatten())


@lessons.register(
    order=14,
    formula="attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017)",
    page="docs/text.md",
    more="bigmodel models transformer",
)
def transformer() -> Result:
    """Learn to write a word backwards with one head of attention, and see where it looks."""
    model = Attention()
    words = (torch.randint(0, LETTERS, (64, LENGTH)) for _ in range(400))
    curve = fit(model, torch.optim.AdamW(model.parameters(), lr=1e-2), ((w, w.flip(1)) for w in words), _loss)
    fresh = torch.randint(0, LETTERS, (200, LENGTH))
    with torch.inference_mode():
        guess = model(fresh).argmax(-1)
    right = float((guess == fresh.flip(1)).float().mean())
    looked = model.weights.mean(0)
    backwards = float(looked.flip(1).diagonal().mean())
    spelled = ["".join("abcdefghijkl"[int(i)] for i in word) for word in (fresh[0], guess[0])]
    rows = [("given", spelled[0]), ("written", spelled[1]), ("letters right, 200 new words", percent(right)),
            ("attention on the mirrored place", percent(backwards))]  # fmt: skip

    def draw(axes: Any) -> None:
        axes[0].plot(curve)
        axes[0].set(xlabel="step", ylabel="training loss")
        axes[1].imshow(looked, cmap="viridis", vmin=0, vmax=1)
        axes[1].grid(visible=False)
        axes[1].set(title="attention", xlabel="letter read", ylabel="place written")

    says = [
        "each output place asks (Q), each input place answers (K), and the best answer's content (V) is copied",
        "nobody told it the order: the mirrored diagonal in the figure is what it has found",
    ]
    return Result(says, ("", ""), rows, draw, (1, 2), (3.6, 3.2), {"right": right, "backwards": backwards})
