"""Finds the image that a cell of a table names: by its path, by its name, or without its suffix."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path, PurePosixPath

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image.images import image_suffixes

HIDDEN = frozenset((
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
    "@eadir", "$recycle.bin", "system volume information", "lost+found",
))  # fmt: skip
"""Files and folders that systems add by themselves, in lower case."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system's own, and no one's data."""
    return name.startswith(".") or name.lower() in HIDDEN


class ImageNames:
    """The images at and below `root`, which are listed only if a name is not a path from there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_key: dict[str, list[str]] | None = None
        self._by_folded: dict[str, list[str]] | None = None
        self.elsewhere: dict[str, int] = {}
        """Folder -> how many names were found in it that are no paths from `root`."""

    def find(self, name: str, where: str) -> str:
        """The file that `name` means.

        Raises:
            InputError: there is none, or several; the message begins with `where`.
        """
        plain = name.replace("\\", "/")
        direct = os.path.join(self.root, plain)  # noqa: PTH118 (a Path for each of a million rows costs seconds)
        if os.path.isfile(direct):  # noqa: PTH113
            return direct
        if "://" in plain:
            raise InputError(f"{where}: {name} is an address", "expected a file", "download the images first")
        keys = (plain.lstrip("./"), PurePosixPath(plain).name)
        found = next((files for key in keys if (files := self._listed().get(key))), [])
        found = found or next((files for key in keys if (files := self._by_any_case().get(key.casefold()))), [])
        if len(found) > 1:
            shown = ", ".join(found[:3])
            raise InputError(
                f"{where}: {len(found)} files are called {name}: {shown}", "expected a path to one of them"
            )
        if not found:
            raise InputError(f"{where}: no file {name}", f"looked in {self.root} and the folders in it")
        folder = str(PurePosixPath(found[0]).parent)
        self.elsewhere[folder] = self.elsewhere.get(folder, 0) + 1
        return os.path.join(self.root, found[0])  # noqa: PTH118

    def _by_any_case(self) -> dict[str, list[str]]:
        """As :meth:`_listed`, by the keys in lower case."""
        if self._by_folded is None:
            self._by_folded = defaultdict(list)
            for key, files in self._listed().items():
                self._by_folded[key.casefold()] += [f for f in files if f not in self._by_folded[key.casefold()]]
        return self._by_folded

    def _listed(self) -> dict[str, list[str]]:
        """Path, name, and either without its suffix -> the images that it may mean, as paths from the root."""
        if self._by_key is None:
            self._by_key = defaultdict(list)
            for folder, folders, files in os.walk(self.root):
                folders[:] = [name for name in folders if not is_hidden(name)]
                inside = os.path.relpath(folder, self.root).replace(os.sep, "/")
                for file in files:
                    stem, dot, suffix = file.rpartition(".")
                    if is_hidden(file) or f"{dot}{suffix}".lower() not in image_suffixes():
                        continue
                    path = file if inside == "." else f"{inside}/{file}"
                    keys = {path, file, stem, path[: len(path) - len(suffix) - 1]}
                    for key in keys:
                        self._by_key[key].append(path)
        return self._by_key
