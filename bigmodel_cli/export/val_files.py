"""Real files of the validation split, one of each format and mode, for the example to be tried on."""

from __future__ import annotations

from pathlib import Path

from bigmodel_cli.core.image.images import image_header
from bigmodel_cli.core.sources import FileSource, Source

LOOK_AT, PER_SUFFIX, MOST = 256, 4, 16
"""Files whose header is read: spread over the split, and of each suffix; and the most that are tried."""


def val_files(source: Source) -> list[tuple[str, bytes]]:
    """(name, bytes) of the first file of each format and mode; empty if samples are not stored as image files."""
    if not isinstance(source, FileSource):
        return []
    found: dict[tuple[str, str], tuple[str, bytes]] = {}
    for index in _candidates(source):
        raw = source.file(index)
        try:
            kind, _, _, mode = image_header(raw)
        except Exception:  # a damaged header can raise a dozen types; the data set reports it, or skips it
            continue
        found.setdefault((kind, mode), (source.name(index), raw))
    return list(found.values())[:MOST]


def _candidates(source: Source) -> list[int]:
    spread = set(range(0, len(source), max(1, len(source) // LOOK_AT)))
    by_suffix: dict[str, list[int]] = {}
    for index in range(len(source)):
        of_suffix = by_suffix.setdefault(Path(source.name(index)).suffix.lower(), [])
        if len(of_suffix) < PER_SUFFIX:
            of_suffix.append(index)
    return sorted(spread.union(*by_suffix.values()))
