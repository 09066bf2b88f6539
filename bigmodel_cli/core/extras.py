"""The optional packages of bigmodel, read from its own metadata, and the line that installs some of them here."""

from __future__ import annotations

import functools
import json
import re
import shlex
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "bigmodel"


@functools.cache
def extras() -> dict[str, tuple[str, ...]]:
    """The import names of the packages of each extra that a user may install, those of included extras among them.

    Empty if bigmodel runs from a source folder without being installed.
    """
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for line in requirements:
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?.*;.*\bextra == ['\"]([\w-]+)['\"]", line)
        if match and match[3] != "dev":
            of_itself = match[1] == DISTRIBUTION
            names = [f"[{name}]" for name in (match[2] or "").split(",")] if of_itself else [match[1]]
            found.setdefault(match[3], []).extend(re.sub("[-.]", "_", name) for name in names)
    return {name: tuple(_whole(packages, found)) for name, packages in found.items()}


def _whole(packages: list[str], found: dict[str, list[str]]) -> list[str]:
    """`packages`, with each included extra, ``[onnx]``, replaced by its own."""
    whole: list[str] = []
    for package in packages:
        whole += _whole(found.get(package[1:-1], []), found) if package.startswith("[") else [package]
    return list(dict.fromkeys(whole))


def install_line(extra: str) -> str:
    """The command that adds `extra` to this installation: from the folder it was installed from, if there is one.

    The name alone would ask an index, which does not have what lies in a checkout.
    """
    folder, editable = _source()
    if folder is None:
        return f"pip install '{DISTRIBUTION}[{extra}]'"
    where = "." if folder == _working_folder() else str(folder)
    return f"pip install {'-e ' * editable}{shlex.quote(f'{where}[{extra}]')}"


def _working_folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it was removed
        return None


@functools.cache
def _source() -> tuple[Path | None, bool]:
    """The folder that bigmodel was installed from, if it is still there, and whether it is edited in place.

    pip and uv record it in ``direct_url.json`` (PEP 610).
    """
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        record = json.loads(text or "{}")
        address = urlsplit(record.get("url", ""))
        editable = bool(record.get("dir_info", {}).get("editable"))
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return None, False
    folder = Path(unquote(address.path))
    there = address.scheme == "file" and (folder / "pyproject.toml").is_file()
    return (folder, editable) if there else (None, False)
