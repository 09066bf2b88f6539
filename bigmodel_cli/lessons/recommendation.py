"""Lesson: tastes from a table with holes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bigmodel_cli.core.registry import lessons
from bigmodel_cli.lessons.lesson import Result

PEOPLE = ("Ann", "Bob", "Cem", "Dora", "Eva", "Finn", "Gus", "Hana")
FILMS = ("Alien", "Blade Runner", "Star Wars", "Solaris", "Emma", "Amelie", "Casablanca", "Titanic")
KNOWN = """
5 4 5 . 1 2 . 1
4 5 . 5 2 . 1 2
5 . 4 4 . 1 2 1
. 5 5 4 1 2 1 .
1 2 . 1 5 4 . 5
2 . 1 2 4 . 5 4
1 1 2 . . 5 4 5
. 2 1 1 5 5 4 .
"""
WIDTH = 2


@lessons.register(
    order=19,
    formula="rating = mean + b_user + b_item + p_user . q_item (Koren, Bell and Volinsky 2009)",
    page="docs/recommendation.md",
    more="bigmodel models mf",
)
def recommendation() -> Result:
    """Fill the holes in a table of ratings by matrix factorisation, and recommend what was not seen."""
    cells = [line.split() for line in KNOWN.strip().splitlines()]
    given = [(u, i, float(r)) for u, row in enumerate(cells) for i, r in enumerate(row) if r != "."]
    users, items = (torch.tensor([entry[k] for entry in given]) for k in (0, 1))
    ratings = torch.tensor([entry[2] for entry in given])
    mean = ratings.mean()
    p, q = nn.Embedding(len(PEOPLE), WIDTH), nn.Embedding(len(FILMS), WIDTH)
    bias_user, bias_item = nn.Embedding(len(PEOPLE), 1), nn.Embedding(len(FILMS), 1)
    parts = [p.weight, q.weight, bias_user.weight, bias_item.weight]
    for weight in parts:
        nn.init.normal_(weight, std=0.1)
    optimizer = torch.optim.Adam(parts, lr=0.05)
    for _ in range(300):
        predicted = mean + bias_user(users)[:, 0] + bias_item(items)[:, 0] + (p(users) * q(items)).sum(1)
        penalty = sum(weight.square().sum() for weight in parts)
        loss = (predicted - ratings).square().mean() + 0.005 * penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        whole = mean + bias_user.weight + bias_item.weight.T + p.weight @ q.weight.T
    seen = torch.zeros(len(PEOPLE), len(FILMS), dtype=torch.bool)
    seen[users, items] = True
    best = whole.masked_fill(seen, -9).argmax(1)
    rows = [(name, FILMS[int(best[u])], f"{whole[u, best[u]]:.1f}") for u, name in enumerate(PEOPLE)]
    error = float((whole[users, items] - ratings).square().mean().sqrt())

    holes = torch.full_like(whole, torch.nan)
    holes[users, items] = ratings

    def draw(axes: Any) -> None:
        for panel, title, shown in ((axes[0], "given", holes), (axes[1], "filled", whole)):
            panel.imshow(shown, cmap="RdYlGn", vmin=1, vmax=5)
            panel.set(title=title, yticks=range(len(PEOPLE)), yticklabels=PEOPLE)
            panel.set_xticks(range(len(FILMS)), FILMS, rotation=60, ha="right", fontsize=8)
            panel.grid(visible=False)

    says = [
        f"{len(given)} ratings by {len(PEOPLE)} people; two numbers for each explain them to {error:.2f} stars",
        "nobody said what kind of film is which: the two groups are found in the ratings",
    ]
    values = {"error": error, "best": best.tolist()}
    return Result(says, ("person", "recommended", "predicted rating"), rows, draw, (1, 2), (3.8, 3.8), values)
