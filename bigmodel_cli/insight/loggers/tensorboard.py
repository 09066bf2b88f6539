"""``--log tensorboard``: ``tensorboard --logdir runs`` compares the curves of all runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigmodel_cli.core.drafts import require_no_link
from bigmodel_cli.core.registry import loggers

Event = Mapping[str, Any]
NO_CURVES = {"event", "epoch", "step", "best"}


@loggers.register(files=("tensorboard",), needs=("tensorboard",), extra="tensorboard")
@contextmanager
def tensorboard(folder: Path, history: Sequence[Event]) -> Iterator[Callable[[Event], None]]:
    """TensorBoard files in the run folder's tensorboard/: one curve over epochs per value."""
    from torch.utils.tensorboard import SummaryWriter

    done = max((event["epoch"] for event in history if event["event"] == "epoch"), default=0)
    # Purge what an interrupted or replaced run wrote after this epoch.
    require_no_link(folder / "tensorboard")
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def write(event: Event) -> None:
        if event["event"] != "epoch":
            return
        for name, value in event.items():
            if name not in NO_CURVES and isinstance(value, (int, float)):
                writer.add_scalar(name.replace("_", "/", 1), value, event["epoch"])
        writer.flush()

    try:
        yield write
    finally:
        writer.close()
