"""Components from outside the package: installed distributions' entry points, and files given with ``--import``.

A distribution names its modules in its own metadata, one group a registry (``bigmodel.models``, ``bigmodel.data``,
...); they are found by reading their source, and imported when a component of theirs is used. A file is run
at once, and only when a person names it on the command line: never because a recipe or a checkpoint says so.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from bigmodel_cli.core.component_source import Found, components_in, modules_below
from bigmodel_cli.core.errors import InputError

GROUP = "bigmodel."
"""Entry points of this group and a registry's variable name modules with components for it."""

_imported: dict[str, Path] = {}
"""The files that ``--import`` named, by the name of the module that each became."""


@dataclass(frozen=True)
class Installed:
    """One entry point: the module it names, and whose it is."""

    name: str
    module: str
    distribution: str

    def components(self, variable: str) -> list[Found]:
        """What the module's source, or every file of a package, registers.

        A module without a source holds one component, which the entry point's name tells.

        Raises:
            InputError: there is no such module, or its source is no Python.
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
    """The modules with components for the registry of that variable, in the order of their names."""
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
    """Where `module` lies. Unlike importlib's ``find_spec`` this does not import the packages that it lies in."""
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
        InputError: it is a plug-in's, and does not import; its file and line are named.
    """
    if module in _imported:  # its file was run, and what it registers is there
        return
    if module.startswith("bigmodel_cli."):
        importlib.import_module(module)
        return
    with_file = _spec(module)
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a stranger's code raises what it likes
        raise _broken(Path(with_file.origin or module) if with_file else Path(module), error) from error


def import_file(path: Path, tell: Callable[[str], None] = lambda line: None) -> None:
    """Run the Python file at `path`, whose components are then registered; once, and `tell` says so before.

    Raises:
        InputError: there is no such file, or running it fails; its line is named.
    """
    file = path.expanduser().resolve()
    # The same in every process of a run: what a child unpickles names its module.
    name = f"bigmodel_import_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}_{file.stem}"
    if name in _imported:
        return
    if not file.is_file():
        raise InputError(f"--import {path}: no such file", "expected a Python file with components of your own")
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InputError(f"--import {path}: not a Python file", "expected a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    tell(f"{path}: running its code")
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _broken(file, error, path) from error
    _imported[name] = file


def imported_files() -> tuple[str, ...]:
    """The files that were run, for a child process that is started anew: it runs them too."""
    return tuple(str(file) for file in _imported.values())


def source_of(module: str) -> str:
    """What a person calls the module of a component: the file that was run, or its name."""
    return str(_imported.get(module, module))


def _broken(file: Path, error: BaseException, shown: Path | None = None) -> InputError:
    """`error`, which running `file` raised, as one line with the place in that file."""
    line = next(reversed([frame.lineno for frame in _frames(error) if frame.filename == str(file)]), None)
    if isinstance(error, SyntaxError) and error.filename == str(file):
        line = error.lineno
    what = error.what if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    place = f"{shown or file}:{line}" if line else str(shown or file)
    return InputError(f"{place}: {what}", hint="bigmodel --debug ... shows where")


def _frames(error: BaseException) -> Iterator[traceback.FrameSummary]:
    yield from traceback.extract_tb(error.__traceback__)
