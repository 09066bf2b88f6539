"""The user's own images: ``--data PATH``, in any layout that ``list_images`` supports."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from bigmodel_cli.core.columns import Columns, GroupBy
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.specs import Interpolation
from bigmodel_cli.core.types import DataBundle, ImageSpec, Source, Spec
from bigmodel_cli.data.image.files import ImageFiles
from bigmodel_cli.data.image.own_size import choose_size
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
    *,
    path: str,
    size: Annotated[
        int | None, Field(ge=8, le=2048, description="pixels; null: the checkpoint's, else the images' own, to 224")
    ] = None,
    crop: Annotated[
        float | None,
        Field(ge=0.5, le=1, description="fraction of the stored square's side used in evaluation; null: by the size"),
    ] = None,
    interpolation: Interpolation | None = None,
    channels: Literal[1, 3] = 3,
    skip_bad: bool = False,
    cache: Literal["auto", "off"] = "auto",
    columns: Columns | None = None,
    group_by: GroupBy = None,
    image_column: Annotated[str | None, Field(description="older spelling of columns.image")] = None,
    label_column: Annotated[str | None, Field(description="older spelling of columns.label")] = None,
) -> DataBundle:
    """Your own images: class folders, a table, a tar, WebDataset shards or a Hugging Face data set."""
    older = {k: v for k, v in (("image", image_column), ("label", label_column)) if v is not None}
    listing = list_images(path, {**older, **(columns or {})} or None, group_by)
    size, crop, chosen = choose_size(listing.splits[listing.first_split], like, size, crop)
    how = interpolation or (like.interpolation if isinstance(like, ImageSpec) else "bilinear")
    side = round(size / crop)
    notes = [*listing.notes, *chosen]

    @functools.cache
    def load(split: str) -> Source:
        files = ImageFiles(listing.splits[split], side, channels, split, skip_bad, cache, how)
        notes.extend(files.notes)
        return files

    spec = ImageSpec(channels, size, size, listing.classes, square=side, crop=crop, interpolation=how)
    loaders = {split: functools.partial(load, split) for split in listing.splits}
    return DataBundle(spec, loaders, listing.fingerprint(), notes, listing.problem)
