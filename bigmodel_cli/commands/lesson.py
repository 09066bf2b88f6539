"""``bigmodel lesson``: lists the lessons of the course, and runs them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.registry import commands, lessons

if TYPE_CHECKING:
    from bigmodel_cli.lessons.lesson import Result

Name = Annotated[
    str | None, typer.Argument(metavar="NAME", help="The lesson to run.", autocompletion=opt.complete("lessons"))
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the figure.  [default: lessons]")]


@commands.register("lesson", order=5)
def lesson(name: Name = None, out: Out = None, json: opt.Json = False) -> None:
    """Run a lesson of the course, from the perceptron to GPT; without a NAME, list them.

    Each takes less than a minute and downloads nothing.

    Examples:

        bigmodel lesson

        bigmodel lesson backward
    """
    if name is None:
        _list(json)
        return
    import torch

    entry = lessons.get(name)
    started = time.perf_counter()
    torch.set_num_threads(1)  # the networks are tiny: more threads wait for each other
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result: Result = entry()
    seconds = time.perf_counter() - started
    figure, problem = _drawn(result, (out or Path("lessons")) / f"{entry.name}.png")
    _report(entry.name, result, figure, seconds, json)
    if problem is not None and out is not None:
        raise problem
    if problem is not None:
        console.note(f"no figure: {problem.line}; {problem.hint or '--out DIR puts it elsewhere'}")


def _report(name: str, result: Result, figure: Path | None, seconds: float, json: bool) -> None:
    entry = lessons.get(name)
    meta, summary = entry.meta, lessons.found[entry.name].summary
    if json:
        table = [dict(zip(result.heads, row, strict=True)) for row in result.rows]
        console.print_json({
            "lesson": entry.name, "summary": summary, "formula": meta["formula"], "page": meta["page"],
            "rows": table, "says": list(result.says), "figure": str(figure) if figure else None, "next": meta["more"],
        })  # fmt: skip
        return
    console.say(summary)
    console.say(f"\n    {meta['formula']}\n".strip("\n"), prose=True)
    console.show(console.table(None, result.heads, result.rows))
    for line in result.says:
        console.say(f"- {line}", prose=True)
    if figure:
        console.say(f"figure: {figure}")
    console.note(f"{seconds:.1f} s; the page: {meta['page']}")
    console.say(f"next: {_following(entry.name)}; the real thing: {meta['more']}")


def _in_order() -> list[Any]:
    return sorted(lessons.found.values(), key=lambda found: (found.meta.get("order", 1000), found.name))


def _following(name: str) -> str:
    names = [found.name for found in _in_order()]
    after = names[names.index(name) + 1 : names.index(name) + 2] if name in names else []
    return f"bigmodel lesson {after[0]}" if after else "bigmodel train resnet18 --data digits"


def _list(json: bool) -> None:
    found = _in_order()
    if json:
        for one in found:
            console.print_json({"lesson": one.name, "summary": one.summary, "formula": one.meta.get("formula")})
        return
    console.show(console.table(None, ("lesson", "what it shows"), [(one.name, one.summary) for one in found]))
    console.say(f"next: bigmodel lesson {found[0].name}")


def _drawn(result: Result, path: Path) -> tuple[Path | None, MachineError | None]:
    """Draw the figure to `path`; or why it cannot be: nothing to draw with, or no place. What was learnt is shown."""
    from bigmodel_cli.insight.plotting import drawing

    if result.draw is None:
        return None, None
    rows, columns = result.panels
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with drawing(path, rows, columns, result.size) as axes:
            result.draw(axes)
    except MachineError as problem:
        return None, problem
    except OSError as error:
        return None, MachineError(f"{path.parent}: {error.strerror}")
    return path, None
