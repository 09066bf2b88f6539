"""Visualises attributions: an HTML page of coloured tokens, or an image with a heat map overlay."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
    return PAGE.format(title=html.escape(title), for_=colour(1, 1), against=colour(-1, 1), texts="\n".join(parts))


def heatmap_of(values: Tensor) -> Tensor:
    """(C,H,W) attributions -> (H,W) in -1..1: summed over channels, clipped at the 99th percentile, smoothed."""
    heat = values.sum(0)
    most = heat.abs().flatten().kthvalue(max(1, round(0.99 * heat.numel()))).values.clamp(min=1e-12)
    heat = (heat / most).clamp(-1, 1)
    return F.avg_pool2d(heat[None, None], 3, 1, 1)[0, 0] if min(heat.shape) >= 16 else heat


def overlay(pixels: Tensor, heat: Tensor, path: Path, least_side: int = 224) -> None:
    """Write `pixels` (C,H,W) in 0..1 next to a copy with `heat` (H,W) in -1..1 overlaid, enlarged if small."""
    from PIL import Image

    grey = pixels.mean(0, keepdim=True).expand(3, -1, -1)
    tint = torch.where((heat > 0)[None], torch.tensor(FOR)[:, None, None], torch.tensor(AGAINST)[:, None, None]) / 255
    alpha = heat.abs()[None] * 0.75
    mixed = (grey * (1 - alpha) + tint * alpha).clamp(0, 1)
    both = torch.cat((pixels.expand(3, -1, -1).clamp(0, 1), mixed), 2)
    image = Image.fromarray((both.permute(1, 2, 0) * 255).round().byte().numpy())
    scale = -(-least_side // min(pixels.shape[1:]))
    if scale > 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    image.save(path)
