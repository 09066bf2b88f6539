"""Visualises attributions of texts: an HTML page of coloured tokens."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from bigmodel_cli.insight.page import seen

FOR, AGAINST = (34, 139, 90), (200, 60, 60)  # colours of evidence for and against the prediction
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 16px/1.9 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
.t {{ padding: .15em .1em; border-radius: .2em; white-space: pre-wrap }} small {{ color: #666 }}
h2 {{ font-size: 1rem; margin: 1.5rem 0 .3rem }}</style>
<h1>{title}</h1>
<p><small>Integrated gradients (Sundararajan et al. 2017) of the answer's log-probability, or of the predicted
number: evidence
<span class="t" style="background: rgb{for_}">for</span>
it and <span class="t" style="background: rgb{against}">against</span> it.
The weights of a text sum to the difference from an empty text.</small></p>
{texts}
</html>
"""


def colour(weight: float, most: float) -> tuple[int, int, int]:
    """White at zero, saturating at `most`; pale enough for black text."""
    share = min(abs(weight) / most, 1.0) if most > 0 else 0.0
    r, g, b = (round(255 - (255 - c) * 0.75 * share) for c in (FOR if weight > 0 else AGAINST))
    return r, g, b


def page(title: str, texts: Sequence[dict[str, Any]]) -> str:
    """A self-contained HTML page; each of `texts` has a name, answer, probability, tokens and weights."""
    parts = []
    for text in texts:
        most = max((abs(w) for w in text["weights"]), default=0.0)
        spans = (
            f'<span class="t" title="{w:+.3f}" style="background: rgb{colour(w, most)}">{html.escape(t)}</span>'
            for t, w in zip(text["tokens"], text["weights"], strict=True)
        )
        head = f"{html.escape(text['name'])}: {html.escape(text['answer'])} {html.escape(text['shown'])}"
        parts.append(f"<h2>{head}</h2><p>{''.join(spans)}</p>")
    made = PAGE.format(title=html.escape(title), for_=colour(1, 1), against=colour(-1, 1), texts="\n".join(parts))
    return seen(made)
