"""``bigmodel tune``: search the fields that a recipe's ``search:`` section names; the answer is a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.core.registry import commands


@commands.register(order=40)
def tune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe with a search: section.")],
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trials in all, over every process.")] = 20,
    out: Annotated[Path | None, typer.Option("--out", help="Folder.  [default: runs/tune-<name of RECIPE>]")] = None,
    epochs: opt.Epochs = None,
    max_steps: opt.MaxSteps = None,
    data_dir: opt.DataDir = None,
    device: opt.Device = None,
    assignments: opt.Set = None,
    json: opt.Json = False,
) -> None:
    """Search a recipe's fields with Optuna; trials worse than the median are cut short.

    Start it again to go on, or in several terminals at once: they share the folder's trials.

    Examples:

        bigmodel tune recipes/image/digits-search.yaml --trials 30

        bigmodel train runs/tune-digits-search/best.yaml
    """
    from bigmodel_cli.core.resolve import document_layer
    from bigmodel_cli.core.strict_yaml import dump_yaml, read_yaml
    from bigmodel_cli.engine.experiments.tune import read_search
    from bigmodel_cli.engine.experiments.tune import tune as search_for

    document = read_yaml(opt.find_recipe(recipe))
    search = read_search(document.values.get("search"), str(recipe))
    flags = {"epochs": epochs, "max_steps": max_steps, "data_dir": data_dir, "device": device}
    layers = [document_layer(document, str(recipe)), *opt.flag_layers(flags, assignments)]
    folder = out or Path("runs") / f"tune-{recipe.stem}"

    def told(event: dict[str, object]) -> None:
        if json:
            console.print_json(event)
        else:
            console.note("  ".join(f"{k} {_short(v)}" for k, v in event.items() if k != "event"))

    best, done = search_for(layers, search, folder, trials, told)
    file = folder / "best.yaml"
    file.write_text(f"# The best of {len(done)} trials of bigmodel tune {recipe}\n{dump_yaml(best.to_dict())}")
    if not json:
        rows = [[_short(v) for v in trial.values()] for trial in done if len(trial) == len(done[0])]
        console.show(console.table("trials", _heads(list(done[0])), rows, right=True))
        console.say(f"best recipe {file}")
        console.say(f"next: bigmodel train {file}")


def _heads(names: list[str]) -> list[str]:
    """The fields without their sections, where that leaves them apart: a table has little room."""
    plain = [name.rpartition(".")[2] for name in names]
    return plain if len(set(plain)) == len(plain) else names


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
