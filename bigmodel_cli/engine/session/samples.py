"""What a model makes of a few val samples after an epoch, for loggers that show pictures and texts."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy
import torch
from torch import Tensor

from bigmodel_cli.core.registry import views
from bigmodel_cli.core.tasks import Classifies, Generates, Predicts
from bigmodel_cli.core.tokenizers.tokens import tokenizer
from bigmodel_cli.core.types import Batch
from bigmodel_cli.data.subset import Subset
from bigmodel_cli.engine.training.evaluate import split_outputs
from bigmodel_cli.engine.training.run import Event, Run

MOST_SAMPLES, SHOWN = 512, 8
MOST_CLASSES = 64  # in the picture of a confusion matrix
PROMPT_TOKENS, NEW_TOKENS = 16, 64
TAG = re.compile(r"<[^>]+>")


def logged_samples(run: Run) -> Event:
    """An event with figures (name -> (H,W,3) uint8), images [(caption, (H,W,3) uint8)] and texts [(caption, text)].

    A classifier shows samples that it gets wrong, and its confusion matrix; a language model continues the start of
    a val text; others show what they predict. At most 512 val samples are read, and nothing random is drawn.
    """
    count = len(run.val)
    few = Subset(run.val, torch.arange(min(count, MOST_SAMPLES)) * count // min(count, MOST_SAMPLES))
    event: Event = {"event": "samples", "epoch": run.progress.epoch, "figures": {}, "images": [], "texts": []}
    with torch.random.fork_rng(devices=[]):
        if isinstance(run.task, Generates):
            event["texts"] = [_continued(run, few)]
        elif isinstance(run.task, Classifies):
            _add_classified(run, few, event)
        elif isinstance(run.task, Predicts):
            _add_predicted(run, few, event)
    return event


def _continued(run: Run, few: Subset) -> tuple[str, str]:
    tokens = few.gather(torch.zeros(1, dtype=torch.int64))["tokens"][0]
    start = tokenizer(run.task.spec).decode([int(token) for token in tokens[:PROMPT_TOKENS] if token >= 0])
    assert isinstance(run.task, Generates)
    run.eval_model.eval()
    with torch.inference_mode(), run.placement.autocast():
        steps = list(islice(run.task.generate(run.eval_model, [start], seed=0), NEW_TOKENS))
    return f"after {start!r}", "".join(piece or "" for step in steps for piece in step)


def _add_classified(run: Run, few: Subset, event: Event) -> None:
    size = run.recipe.train.eval_batch_size
    found = split_outputs(run.eval_model, run.task, few, run.placement, size)
    assert found is not None
    names, guesses = list(run.task.spec.classes), found["logits"].argmax(1)
    known = found["label"] >= 0
    if len(names) <= MOST_CLASSES:
        counts = torch.zeros(len(names), len(names))
        counts.index_put_((found["label"][known], guesses[known]), torch.ones(int(known.sum())), accumulate=True)
        event["figures"]["confusion"] = draw_confusion(counts, names)
    wrong = (known & (guesses != found["label"])).nonzero().flatten()[:SHOWN].tolist()
    for place in wrong:
        title = f"is {names[found['label'][place]]}, taken for {names[guesses[place]]}"
        _add_sample(few, int(found["index"][place]), title, run, event)


def _add_predicted(run: Run, few: Subset, event: Event) -> None:
    indices = torch.arange(min(len(few), SHOWN))
    batch = run.placement.inputs(run.task.prepare(run.placement.batch(few.gather(indices))))
    run.eval_model.eval()
    assert isinstance(run.task, Predicts)
    with torch.inference_mode(), run.placement.autocast():
        rows = run.task.predict(run.eval_model, batch, 3)
    for index, row in zip(indices.tolist(), rows, strict=True):
        _add_sample(few, index, ", ".join(f"{name} {value:.3g}" for name, value in row), run, event)


def _add_sample(few: Subset, index: int, title: str, run: Run, event: Event) -> None:
    """Add the sample as a picture where it is one, else as a text."""
    raw, spec = few.gather(torch.tensor([index])), run.task.spec
    if "image" in raw:
        event["images"].append((title, _picture(raw["image"][0])))
    else:
        event["texts"].append((title, _text(raw, spec) or few.name(index)))


def _text(raw: Batch, spec: Any) -> str:
    shown = str(views.get(spec.kind)(raw, spec)) if spec.kind in views.found else ""
    return html.unescape(TAG.sub("", shown))


def _picture(pixels: Tensor) -> numpy.ndarray[Any, Any]:
    """`pixels` (C,H,W) uint8 as (H,W,3); a small picture is enlarged, pixel by pixel."""
    rows = pixels[:3].expand(3, -1, -1) if len(pixels) in (1, 3, 4) else pixels[:1].expand(3, -1, -1)
    times = max(1, 96 // max(rows.shape[1:]))
    return rows.permute(1, 2, 0).repeat_interleave(times, 0).repeat_interleave(times, 1).contiguous().cpu().numpy()


def draw_confusion(counts: Tensor, names: Sequence[str]) -> numpy.ndarray[Any, Any]:
    """The `counts` (K,K) of label by prediction as a picture (H,W,3) uint8, each row shaded by its shares."""
    from PIL import Image, ImageDraw

    cell, margin = (24, 90) if len(names) <= 32 else (12, 90)
    side = margin + cell * len(names)
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    for row, name in enumerate(names):
        top = margin + cell * row
        pen.text((4, top + cell // 2 - 6), name[:13], fill="black")
        for column in range(len(names)):
            left, share = margin + cell * column, float(shares[row, column])
            shade = tuple(round(255 + (dark - 255) * share) for dark in (8, 48, 107))
            pen.rectangle((left, top, left + cell - 2, top + cell - 2), fill=shade)
            if cell >= 24 and counts[row, column]:
                text = f"{int(counts[row, column])}"
                pen.text((left + 3, top + 5), text, fill="white" if share > 0.5 else "black")
    for column, name in enumerate(names):  # upright names would need a rotated picture of each
        label = Image.new("RGB", (margin - 4, 12), "white")
        ImageDraw.Draw(label).text((0, 0), name[:13], fill="black")
        image.paste(label.rotate(90, expand=True), (margin + cell * column + cell // 2 - 6, 0))
    return numpy.asarray(image).copy()
