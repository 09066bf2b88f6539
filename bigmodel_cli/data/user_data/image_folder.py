"""The user's own images: ``--data PATH``, in any layout that ``list_images`` supports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from bigmodel_cli.core.readers.columns import Columns, GroupBy, TableEncoding
from bigmodel_cli.core.readers.text_files import AUTO
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.specs import Interpolation
from bigmodel_cli.core.types import DataBundle, Spec
from bigmodel_cli.data.image.reading import Cache, Channels, Crop, Reading, Size
from bigmodel_cli.data.image.value_range import Given
from bigmodel_cli.data.user_data.image_discovery import list_images
from bigmodel_cli.data.user_data.image_huggingface import SCHEME
from bigmodel_cli.data.user_path import UserPath


def _is_images(given: UserPath) -> float:
    """Shards and hubs, tables with an image, and any folder or archive that nothing else reads."""
    if given.text.startswith(SCHEME) or given.is_pattern:
        return 10
    if given.table is not None and not given.is_dir:
        return 1.5 * given.has_columns(("image", "label"))
    return 0.5


@data.register(reads=_is_images)
def image_folder(
    root: Path,
    like: Spec | None = None,
    fits: bool = False,
    *,
    path: str,
    size: Size = None,
    crop: Crop = None,
    interpolation: Interpolation | None = None,
    channels: Channels = 3,
    value_range: Given = None,
    skip_bad: bool = False,
    cache: Cache = "auto",
    columns: Columns | None = None,
    group_by: GroupBy = None,
    encoding: TableEncoding = AUTO,
    image_column: Annotated[str | None, Field(description="older spelling of columns.image")] = None,
    label_column: Annotated[str | None, Field(description="older spelling of columns.label")] = None,
) -> DataBundle:
    """Your own images: class folders, a table, a tar, WebDataset shards or a Hugging Face data set."""
    older = {k: v for k, v in (("image", image_column), ("label", label_column)) if v is not None}
    listing = list_images(path, {**older, **(columns or {})} or None, group_by, encoding)
    reading, notes = Reading(size, crop, interpolation, channels, value_range, skip_bad, cache), [*listing.notes]
    spec, load = reading.open(listing.splits, listing.classes, like, fits, notes)
    return DataBundle(spec, load, listing.fingerprint(), notes, listing.problem)
