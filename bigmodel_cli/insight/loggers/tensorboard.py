"""``--log tensorboard``: ``tensorboard --logdir runs`` compares the curves of all runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigmodel_cli.core.files.drafts import require_no_link
from bigmodel_cli.core.registry import loggers
from bigmodel_cli.insight.loggers.recipe_values import curves

Event = Mapping[str, Any]


@loggers.register(files=("tensorboard",), needs=("tensorboard",), extra="tensorboard", samples=True)
@contextmanager
def tensorboard(folder: Path, history: Sequence[Event]) -> Iterator[Callable[[Event], None]]:
    """TensorBoard files in the run folder's tensorboard/: one curve over epochs per value, pictures and texts."""
    from torch.utils.tensorboard import SummaryWriter

    done = max((event["epoch"] for event in history if event["event"] == "epoch"), default=0)
    # Purge what an interrupted or replaced run wrote after this epoch.
    require_no_link(folder / "tensorboard")
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def write(event: Event) -> None:
        if event["event"] == "epoch":
            for name, value in curves(event).items():
                writer.add_scalar(name, value, event["epoch"])
        elif event["event"] == "samples":
            for name, pixels in event["figures"].items():
                writer.add_image(name, pixels, event["epoch"], dataformats="HWC")
            for i, (title, pixels) in enumerate(event["images"], 1):
                writer.add_image(f"samples/{i}", pixels, event["epoch"], dataformats="HWC")
                writer.add_text(f"samples/{i}", title, event["epoch"])
            for i, (title, text) in enumerate(event["texts"], 1):
                writer.add_text(f"texts/{i}", f"**{title}**\n\n{text}", event["epoch"])
        writer.flush()

    try:
        yield write
    finally:
        writer.close()
