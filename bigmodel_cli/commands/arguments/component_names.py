"""The names of registered components, for help texts and shell completion: read without importing any."""

from __future__ import annotations

from typing import Any


def complete(registry: str) -> Any:
    """Shell completion from the names in a registry, which are read from the source without importing torch."""

    def names(incomplete: str) -> list[str]:
        from bigmodel_cli.core import registry as registries

        return getattr(registries, registry).matching(incomplete, start=True)  # type: ignore[no-any-return]

    return names


def listed(registry: str, most: int = 8) -> str:
    """The names in a registry for a help text, the first `most` of them: ``gd, sgd, adam, ...``."""
    from bigmodel_cli.core import registry as registries

    names = getattr(registries, registry).names()
    return ", ".join([*names[:most], "..."] if len(names) > most else names) + ("" if len(names) > most else ".")
