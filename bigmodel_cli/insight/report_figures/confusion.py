"""Which classes are taken for which: the shares of each true class, the worst first."""

from __future__ import annotations

from html import escape

import torch
from torch import Tensor

from bigmodel_cli.core.registry import report_figures
from bigmodel_cli.insight.evaluated import Evaluated
from bigmodel_cli.insight.page import note, table
from bigmodel_cli.metrics.classification import predicted

MOST_CLASSES, MOST_PAIRS = 20, 30


@report_figures.register(of=("classification",), title="Confusion matrix", order=10)
def confusion(found: Evaluated) -> str:
    """Shares of each true class, classes with the lowest recall first; the largest of thousands of classes."""
    labels, classes = found.outputs["label"], found.task.spec.classes
    known = labels >= 0
    labels, guesses, k = labels[known], predicted(found.outputs)[known], len(classes)
    if not len(labels):
        return ""
    support = labels.bincount(minlength=k)
    recall = labels[labels == guesses].bincount(minlength=k) / support.clamp(min=1)
    misses = (
        support - labels[labels == guesses].bincount(minlength=k) + guesses[labels != guesses].bincount(minlength=k)
    )
    seen = (support > 0).nonzero().flatten()
    kept = seen[misses[seen].argsort(descending=True, stable=True)[:MOST_CLASSES]]
    kept = kept[recall[kept].argsort(stable=True)]
    position = torch.full((k,), len(kept))  # everything else is one last column
    position[kept] = torch.arange(len(kept))
    counts = torch.zeros(k, len(kept) + 1, dtype=torch.int64)
    counts.index_put_((labels, position[guesses]), torch.ones(len(labels), dtype=torch.int64), accumulate=True)
    body = note("rows: true class, columns: predicted; shares of the row, classes with the lowest recall first")
    body += _matrix([classes[i] for i in kept.tolist()], counts[kept], len(kept) < k)
    if len(kept) < len(seen):
        body += note(f"the {len(kept)} of {len(seen):,} classes with most errors; the rest is in one column")
    return body + _pairs(labels, guesses, classes)


def _matrix(names: list[str], counts: Tensor, rest: bool) -> str:
    """`counts` (k,k+1), the last column for all other classes."""
    columns = [*names, "others"] if rest else names
    head = "".join(f'<th title="{escape(c)}">{escape(_short(c))}</th>' for c in columns)
    lines = []
    for name, row in zip(names, counts.tolist(), strict=True):
        total = max(sum(row), 1)
        cells = "".join(_cell(name, c, n, n / total) for c, n in zip(columns, row, strict=False))
        lines.append(f'<tr><th title="{escape(name)}">{escape(_short(name))}</th>{cells}<td>{total:,}</td></tr>')
    table = f'<table class="matrix"><tr><th></th>{head}<th>samples</th></tr>{"".join(lines)}</table>'
    return f'<div class="scroll">{table}</div>'


def _cell(true: str, said: str, count: int, share: float) -> str:
    colour = "37,99,235" if true == said else "220,38,38"
    text = f"{share:.0%}" if share >= 0.005 else ("<1%" if count else "")
    shade = f"background:rgba({colour},{min(0.12 + share * (0.5 if true == said else 2), 0.75):.2f})" if count else ""
    label = escape(f"{true} taken for {said}: {count:,}")
    return f'<td style="{shade}" title="{label}">{escape(text)}</td>'


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"


def _pairs(labels: Tensor, guesses: Tensor, classes: tuple[str, ...]) -> str:
    """The pairs of classes that are confused most often."""
    wrong = labels != guesses
    pairs, counts = (labels[wrong] * len(classes) + guesses[wrong]).unique(return_counts=True)
    if len(classes) <= 2 or not len(pairs):
        return ""
    most = counts.argsort(descending=True, stable=True)[: min(MOST_PAIRS, 10 if len(classes) <= MOST_CLASSES else 30)]
    rows = [(classes[p // len(classes)], classes[p % len(classes)], f"{n:,}")
            for p, n in zip(pairs[most].tolist(), counts[most].tolist(), strict=True)]  # fmt: skip
    return "<h3>Confused most often</h3>" + table(("true", "predicted", "samples"), rows)
