"""Lists the files of a folder of your own data, at any depth: those of known suffixes, and how many others."""

from __future__ import annotations

import os
import time
from collections.abc import Set

from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.image.image_names import is_hidden
from bigmodel_cli.data.image.class_folders import HIDDEN, Folder
from bigmodel_cli.data.thread_map import REPORT_EVERY, report_progress


def list_files(root: str, suffixes: Set[str], notes: list[str]) -> Folder:
    """The folder at `root` with its files of `suffixes` as images; what a person should know is added to `notes`.

    Raises:
        InputError: a folder cannot be read.
    """
    return _Walk(root, suffixes, notes).tree


class _Walk:
    """Lists every file below a folder. Links to folders are followed, except back to a folder they are in."""

    def __init__(self, root: str, suffixes: Set[str], notes: list[str]) -> None:
        self.suffixes, self.circles, self.images = suffixes, 0, 0
        self._reported, self._shown = time.monotonic(), False
        self.tree = Folder(os.path.basename(root), root)  # noqa: PTH119
        self._list(self.tree, frozenset([self._identity(root)]))
        notes += [f"{counted(self.circles, 'link')} not followed, leading back to where they are"] * bool(self.circles)

    def _identity(self, path: str) -> tuple[int, int]:
        stat = os.stat(path)  # noqa: PTH116
        return stat.st_dev, stat.st_ino

    def _list(self, folder: Folder, above: frozenset[tuple[int, int]]) -> None:
        try:
            with os.scandir(folder.path) as found:
                entries = list(found)
        except OSError as error:
            raise InputError(f"{folder.path}: {error.strerror}", "expected a folder that can be read") from None
        for entry in entries:
            try:
                is_dir = entry.is_dir()
            except OSError:  # a link that leads to itself
                self.circles += 1
                continue
            if is_dir:
                if not is_hidden(entry.name):
                    self._enter(folder, entry, above)
            elif is_hidden(entry.name):
                folder.others[HIDDEN] += 1
            elif (suffix := suffix_of(entry.name)) in self.suffixes:
                folder.images.append(entry.path)
            else:
                folder.others[suffix or "no suffix"] += 1
        self.images += len(folder.images)
        if time.monotonic() - self._reported > REPORT_EVERY:
            self._reported = time.monotonic()
            self._shown = True
            report_progress("listing files", self.images, None)

    def _enter(self, folder: Folder, entry: os.DirEntry[str], above: frozenset[tuple[int, int]]) -> None:
        identity = self._identity(entry.path) if entry.is_symlink() else (entry.stat().st_dev, entry.inode())
        if identity in above:
            self.circles += 1
        else:
            self._list(folder.child(entry.name), above | {identity})


def suffix_of(name: str) -> str:
    """The suffix of a file name, in lower case; empty if it has none."""
    return name[name.rfind(".") :].lower() if "." in name else ""
