"""Reports on ratings and rankings, with intervals over users, baselines of the same run, and tables by segment.

Shapes: N samples, U users with samples, B batch, I items, S items of a user.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.registry import reports
from bigmodel_cli.core.sources import HistorySource
from bigmodel_cli.core.types import Source
from bigmodel_cli.insight.reports import Names, Outputs, Report, Table, headline, plain
from bigmodel_cli.metrics.intervals import Figure, MeanOf, measure, with_intervals
from bigmodel_cli.metrics.reading import format_metric
from bigmodel_cli.metrics.recommendation import hit_rate, ndcg
from bigmodel_cli.models.layers.item_baselines import BASELINES, Score
from bigmodel_cli.tasks.catalogue import hide, ranks
from bigmodel_cli.tasks.recommendation import as_held_out

MOST_ITEMS = 20_000  # a square matrix of them takes 1.6 GB
USERS_AT_ONCE = 1024
SEGMENTS = ("low", "middle", "high")


@reports.register()
def ratings(task: Any, data: Any, source: Source, outputs: Outputs, wrong: int, names: Names) -> Report:
    """Errors of ratings with intervals over users, whose ratings are not independent; tables by activity."""
    out = outputs()
    by_user = _sums_by_user(out)
    found = measure(names, by_user)
    tables = [headline(found)]
    counts = _lookup(task.spec.item_counts, out["item"])
    segments = {
        "user's ratings in this split": by_user["count"][by_user["place"]],
        "item's ratings in train": counts,
    }
    values = _rating_segments(names, out, segments)
    tables += [_segment_table(title, rows, names, "ratings") for title, rows in values.items()]
    worst = out["absolute"].argsort(descending=True, stable=True)[:wrong].tolist()
    mistakes = [
        {
            "name": source.name(i), "user": task.spec.user_id(int(out["user"][i])),
            "item": task.spec.title(int(out["item"][i])), "true": float(out["rating"][i]),
            "predicted": float(out["prediction"][i]),
        }
        for i in worst
    ]  # fmt: skip
    if mistakes:
        rows: list[tuple[str, ...]] = [
            (str(m["user"]), str(m["item"]), f"{m['true']:g}", f"{m['predicted']:.2f}") for m in mistakes
        ]
        tables.append(("largest errors", ("user", "item", "rating", "predicted"), rows, False))
    users = len(by_user["count"])
    summary = {"samples": len(out["rating"]), "users": users, "headline": plain(found), "segments": values}
    return Report({**summary, "wrong": mistakes}, tables, [f"intervals are over the {users:,} users of the split"])


def _sums_by_user(out: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums of the errors of each user (U,); `place` (N,) says which user each rating is of."""
    users, place = out["user"].unique(return_inverse=True)
    sums = {
        name: torch.zeros(len(users), dtype=torch.float64).index_add_(0, place, out[name].double())
        for name in ("squared", "absolute", "count")
    }
    return {**sums, "place": place}


def _rating_segments(
    names: Names, out: Mapping[str, Tensor], segments: Mapping[str, Tensor]
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for title, by in segments.items():
        found[title] = []
        for name, low, high, chosen in _terciles(by):
            part = _sums_by_user({k: v[chosen] for k, v in out.items()})
            figures = measure(names, part)
            found[title].append({"segment": name, "from": low, "to": high, "n": int(chosen.sum()), **plain(figures)})
    return found


@reports.register(run_samples=2000, lists_mistakes=False)  # each takes scores of every item
def ranking(task: Any, data: Any, source: Source, outputs: Outputs, wrong: int, names: Names) -> Report:
    """Full-ranking metrics over users, baselines and paired differences of the same run, tables by segment."""
    out = outputs()
    found = measure(names, out)
    notes = ["every item that the user has not seen is ranked; ties by item number; intervals are over users"]
    rivals, compared = dict[str, Any](), list[tuple[str, ...]]()
    if not isinstance(source, HistorySource) or task.spec.items > MOST_ITEMS:
        notes.append(f"no baselines: the catalogue has more than {MOST_ITEMS:,} items")
    else:
        rivals, compared = _against_baselines(task, source, out)
        notes.append("baselines: " + "; ".join(b.how for b in BASELINES))
    segments = {
        "items in the user's history": out["activity"],
        "train interactions of the held-out item": out["held_count"],
    }
    values = {title: _ranking_segments(out, by) for title, by in segments.items()}
    tables = [headline(found)]
    if compared:
        columns = ("model", "NDCG@10", "HR@10", "this model's NDCG@10 minus its", "95% interval")
        tables.append(("against baselines of the same run, paired over users", columns, compared, True))
    shown = ("ndcg_10", "hit_rate_10")
    tables += [_segment_table(title, rows, shown, "users") for title, rows in values.items()]
    summary = {"samples": len(out["rank"]), "headline": plain(found), "baselines": rivals, "segments": values}
    return Report(summary, tables, notes)


def _against_baselines(
    task: Any, source: HistorySource, out: Mapping[str, Tensor]
) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
    """The baselines' metrics and the paired difference to them, as values and as rows of a table."""
    ours = ndcg(out, k=10)
    gram = co_occurrence(source.trained, task.spec.users, task.spec.items)
    values, rows = {}, list[tuple[str, ...]]()
    own = float(ours.mean())
    rows.append(("this model", f"{own:.4f}", f"{float(hit_rate(out, k=10).double().mean()):.2%}", "", ""))
    for baseline in BASELINES:
        rank = _baseline_ranks(baseline.fit(gram), task, source)
        theirs = {"ndcg_10": ndcg({"rank": rank}, k=10), "hit_rate_10": hit_rate({"rank": rank}, k=10).double()}
        difference = paired(ours, theirs["ndcg_10"])
        means = {name: float(value.mean()) for name, value in theirs.items()}
        values[baseline.name] = {**means, "ndcg_10_difference": difference.to_dict()}
        rows.append((
            baseline.name, f"{means['ndcg_10']:.4f}", f"{means['hit_rate_10']:.2%}", f"{difference.value:+.4f}",
            f"{difference.low:+.4f} .. {difference.high:+.4f}",
        ))  # fmt: skip
    return values, rows


def paired(ours: Tensor, theirs: Tensor) -> Figure:
    """The mean of ours minus theirs (N,) with its paired bootstrap interval: both are resampled by the same users."""
    return with_intervals({"difference": MeanOf(ours.double() - theirs.double())}, len(ours), 1, 0)["difference"]


def co_occurrence(histories: Callable[[Tensor], Tensor], users: int, items: int) -> Tensor:
    """(I,I) how many users have both items; the diagonal counts each item's users."""
    gram = torch.zeros(items, items)
    for part in torch.arange(users).split(USERS_AT_ONCE):
        held = _indicators(histories(part), items)
        gram += held.t() @ held
    return gram


def _baseline_ranks(score: Score, task: Any, source: HistorySource) -> Tensor:
    """(N,R) the ranks of the held-out items of every sample of `source`."""
    found = []
    for indices in torch.arange(len(source)).split(USERS_AT_ONCE):
        raw = {name: value.cpu() for name, value in source.gather(indices).items()}  # a GPU may hold the split
        batch = as_held_out(task.prepare(raw))
        scores = score(_indicators(batch["history"], score.items))
        found.append(ranks(hide(scores, batch["history"]), batch["relevant"]))
    return torch.cat(found)


def _indicators(history: Tensor, items: int) -> Tensor:
    """(B,I) float: 1 for each item of `history` (B,S), numbered from 1."""
    return torch.zeros(len(history), items + 1).scatter_(1, history, 1.0)[:, 1:]


def _ranking_segments(out: Mapping[str, Tensor], by: Tensor) -> list[dict[str, Any]]:
    rows = []
    for name, low, high, chosen in _terciles(by):
        part = {"rank": out["rank"][chosen]}
        figures = measure(("ndcg_10", "hit_rate_10"), part)
        rows.append({"segment": name, "from": low, "to": high, "n": int(chosen.sum()), **plain(figures)})
    return rows


def _terciles(by: Tensor) -> list[tuple[str, float, float, Tensor]]:
    """Name, smallest and largest value, and members (N,) bool of each third of the samples by `by` (N,), if any."""
    edges = by.double().quantile(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    part = torch.bucketize(by.double(), edges)
    found = []
    for i, name in enumerate(SEGMENTS):
        chosen = part == i
        if chosen.any():
            found.append((name, float(by[chosen].min()), float(by[chosen].max()), chosen))
    return found


def _segment_table(title: str, rows: list[dict[str, Any]], names: Names, unit: str) -> Table:
    shown = [n for n in names if rows and n in rows[0]]
    cells = [
        (
            f"{r['segment']}: {r['from']:.4g} to {r['to']:.4g}", f"{r['n']:,}",
            *(_short(n, r[n]) for n in shown),
        )
        for r in rows
    ]  # fmt: skip
    return title, ("", unit, *(n.replace("_", " ") for n in shown)), cells, True


def _short(name: str, figure: Mapping[str, float | None]) -> str:
    """A metric and its interval in as few digits as a segment's users bear: two of them fit into 80 columns."""
    percent = format_metric(name, 0.5).endswith("%")
    found = (figure[key] for key in ("value", "low", "high"))
    value, low, high = ("-" if x is None else f"{x * 100:.1f}" if percent else f"{x:.3f}" for x in found)
    return f"{value}{'%' if percent else ''} ({low} .. {high})"


def _lookup(counts: Any, index: Tensor) -> Tensor:
    return torch.tensor(counts)[index] if counts else torch.zeros_like(index)
