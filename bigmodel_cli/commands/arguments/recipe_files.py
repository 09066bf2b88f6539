"""Where recipe files are found."""

from __future__ import annotations

from pathlib import Path

import bigmodel_cli


def recipes_folder() -> Path:
    """The folder of bundled recipes: inside the installed package, or beside it in a checkout."""
    package = Path(bigmodel_cli.__file__).resolve().parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def find_recipe(path: Path) -> Path:
    """`path` itself, or the bundled recipe of that name."""
    if not path.exists() and path.parts[:1] == ("recipes",):
        bundled = recipes_folder() / Path(*path.parts[1:])
        if bundled.exists():
            return bundled
    return path
