"""One run, shown as it goes, with its page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigmodel_cli.commands.display.progress import Display
    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.engine.distributed.process_group import Group
    from bigmodel_cli.engine.session.run_folder import RunFolder
    from bigmodel_cli.engine.session.session import Outcome


def train_recipe(
    recipe: Recipe,
    folder: RunFolder,
    display: Display,
    group: Group | None = None,
    started: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train `recipe` in `folder`, shown on `display`, and write its page; `started` is called once it is built."""
    from bigmodel_cli.commands.training.page import RunPage
    from bigmodel_cli.engine.distributed.process_group import SINGLE_PROCESS
    from bigmodel_cli.engine.session.session import train as run

    group = group or SINGLE_PROCESS
    if not group.is_main:
        return run(recipe, folder, display.emit, group=group)
    page = RunPage()

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            started()
        display.emit(event)
        page.emit(event)

    try:
        with display:
            outcome = run(recipe, folder, emit, group=group)
    except BaseException:
        page.stopped()
        raise
    page.finished(outcome)
    return outcome
