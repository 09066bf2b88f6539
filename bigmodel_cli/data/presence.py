"""Which data sets lie in the data folder, by what each was registered with; nothing of them is imported or read."""

from __future__ import annotations

from pathlib import Path

from bigmodel_cli.core.registry import data


def is_present(name: str, root: Path) -> bool:
    """Whether the files of data set `name` lie below `root`.

    A data set is registered with the patterns of its ``files``, each of which must be there in one of its
    ``folders`` (default: of its own name); ``a|b`` is either. Without ``files`` it lies where a person says, or
    is always there where that is ``()``, as inside a package.
    """
    meta = data.found[name].meta
    places = [root / folder for folder in meta.get("folders", (name,))]
    wanted = meta.get("files")
    return wanted is not None and all(_any(places, pattern.split("|")) for pattern in wanted)


def present_in(root: Path) -> list[str]:
    """The data sets whose files lie below `root`."""
    return [name for name in data.names() if is_present(name, root)]


def _any(places: list[Path], patterns: list[str]) -> bool:
    return any(next(place.glob(pattern), None) for place in places for pattern in patterns)
