"""``bigmodel tune``: search the fields in a recipe's ``search:`` section for the best recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.arguments.options import RunOptions
from bigmodel_cli.commands.arguments.recipe_files import find_recipe
from bigmodel_cli.commands.arguments.signatures import takes_options
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import printable
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.registry import commands

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file with a search: section.")]
Trials = Annotated[
    int, typer.Option("--trials", metavar="N", min=1, help="Total number of trials, over all processes.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder of the search.  [default: runs/tune-<name of RECIPE>]",
    ),
]


@commands.register(order=40)
@takes_options("tune", epochs="the recipe's", max_steps="the recipe's", device="the recipe's")
def tune(*, recipe: Recipe, trials: Trials = 20, out: Out = None, options: RunOptions, json: opt.Json = False) -> None:
    """Tune hyperparameters with Optuna; trials worse than the median stop early.

    Run it again to continue, or in several terminals at once: they share the trials in --out.

    Examples:

        bigmodel tune recipes/image/digits-search.yaml --trials 30

        bigmodel train runs/tune-digits-search/best.yaml
    """
    from bigmodel_cli.core.resolve import document_layer
    from bigmodel_cli.core.strict_yaml import dump_yaml, read_yaml
    from bigmodel_cli.engine.experiments.tune import read_search
    from bigmodel_cli.engine.experiments.tune import tune as search_for

    document = read_yaml(find_recipe(recipe))
    search = read_search(document.values.get("search"), str(recipe))
    layers = [document_layer(document, str(recipe)), *options.flag_layers()]
    folder = out or Path("runs") / f"tune-{recipe.stem}"

    def show_event(event: dict[str, object]) -> None:
        if json:
            console.print_json(event)
        else:
            console.note("  ".join(f"{k} {_short(v)}" for k, v in event.items() if k != "event"))

    best, done = search_for(layers, search, folder, trials, show_event)
    file = folder / "best.yaml"
    atomic_files.write_text(
        file, f"# The best of {len(done)} trials of bigmodel tune {printable(str(recipe))}\n{dump_yaml(best.to_dict())}"
    )
    if not json:
        rows = [[_short(v) for v in trial.values()] for trial in done if len(trial) == len(done[0])]
        console.show(console.table("trials", _heads(list(done[0])), rows, right=True))
        console.say(f"best recipe: {file}")
        console.say(f"next: bigmodel train {file}")


def _heads(names: list[str]) -> list[str]:
    """The fields without their sections, where those are still distinct, so that the table is narrow."""
    plain = [name.rpartition(".")[2] for name in names]
    return plain if len(set(plain)) == len(plain) else names


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
