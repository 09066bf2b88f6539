"""Components from outside the package: installed distributions' entry points, and files given with ``--import``.

A distribution lists its modules in its metadata, one entry point group per registry (``bigmodel.models``,
``bigmodel.data``, ...). Their source is read to find the components; a module is imported when one of them is used.
A file given with ``--import`` runs immediately. Recipes and checkpoints can never name a file to run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from bigmodel_cli.core.component_source import Found, components_in, modules_below
from bigmodel_cli.core.errors import InputError

GROUP = "bigmodel."
"""The prefix of entry point groups; a registry's variable name follows."""

_imported: dict[str, Path] = {}
"""The files given with ``--import``, by module name."""


@dataclass(frozen=True)
class Installed:
    """One entry point: its module and the distribution that declares it."""

    name: str
    module: str
    distribution: str

    def components(self, variable: str) -> list[Found]:
        """The components registered in the module's source; for a package, in all of its files.

        A module without source has one component, with the name of the entry point.

        Raises:
            InputError: there is no such module, or its source is not valid Python.
        """
        spec = _spec(self.module)
        if spec is None:
            raise InputError(f"{self}: there is no module {self.module}", hint=f"pip uninstall {self.distribution}")
        files = [(self.module, Path(spec.origin))] if spec.origin and spec.origin.endswith(".py") else []
        for folder in spec.submodule_search_locations or ():
            files = list(modules_below(Path(folder), self.module))
        found = [entry for module, file in files for entry in components_in(file, module, variable)]
        return found or [Found(self.name, self.module, "")]

    def __str__(self) -> str:
        return f"the plug-in {self.distribution}"


def installed(variable: str) -> list[Installed]:
    """The entry points for the registry `variable`, sorted by distribution and module."""
    return sorted(_entry_points().get(GROUP + variable, ()), key=lambda entry: (entry.distribution, entry.module))


@functools.cache
def _entry_points() -> dict[str, list[Installed]]:
    from importlib import metadata

    found: dict[str, list[Installed]] = {}
    seen: set[str] = set()
    for distribution in metadata.distributions():
        ours = [entry for entry in distribution.entry_points if entry.group.startswith(GROUP)]
        if ours and distribution.name not in seen:  # the first on the path is the one that is imported
            seen.add(distribution.name)
            for entry in ours:
                found.setdefault(entry.group, []).append(Installed(entry.name, entry.module, distribution.name))
    return found


def _spec(module: str) -> ModuleSpec | None:
    """The spec of `module`. Unlike importlib's ``find_spec``, this does not import its parent packages."""
    spec, where = None, None
    parts = module.split(".")
    for i in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: i + 1]), where)
        if spec is None:
            return None
        where = spec.submodule_search_locations
    return spec


def import_component(module: str) -> None:
    """Import a module that registers components.

    Raises:
        InputError: a plug-in cannot be imported; the message names its file and line.
    """
    if module in _imported:  # its file has run, so its components are registered
        return
    if module.startswith("bigmodel_cli."):
        importlib.import_module(module)
        return
    spec = _spec(module)
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # third-party code can raise anything
        raise _import_error(Path(spec.origin or module) if spec else Path(module), error) from error


def import_file(path: Path, notify: Callable[[str], None] = lambda line: None) -> None:
    """Run the Python file at `path`, which registers its components. A file runs only once; `notify` is called first.

    Raises:
        InputError: there is no such file, or running it fails; the message names the line.
    """
    file = path.expanduser().resolve()
    # The name is the same in every process of a run, because pickles refer to modules by name.
    name = f"bigmodel_import_{hashlib.sha256(os.fsencode(file)).hexdigest()[:8]}_{file.stem}"
    if name in _imported:
        return
    if not file.is_file():
        raise InputError(f"--import {path}: no such file", "expected a Python file")
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InputError(f"--import {path}: not a Python file", "expected a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    notify(f"{path}: running its code")
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_error(file, error, path) from error
    _imported[name] = file


def imported_files() -> tuple[str, ...]:
    """The files that were run, so that a spawned child process can run them too."""
    return tuple(str(file) for file in _imported.values())


def source_of(module: str) -> str:
    """A readable origin of a component: the path of an imported file, else the module's name."""
    return str(_imported.get(module, module))


def _import_error(file: Path, error: BaseException, shown: Path | None = None) -> InputError:
    """Turn `error`, raised while running `file`, into an InputError with the line in that file."""
    line = next(reversed([frame.lineno for frame in _frames(error) if frame.filename == str(file)]), None)
    if isinstance(error, SyntaxError) and error.filename == str(file):
        line = error.lineno
    what = error.what if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    place = f"{shown or file}:{line}" if line else str(shown or file)
    return InputError(f"{place}: {what}", hint="bigmodel --debug ... shows where")


def _frames(error: BaseException) -> Iterator[traceback.FrameSummary]:
    yield from traceback.extract_tb(error.__traceback__)
