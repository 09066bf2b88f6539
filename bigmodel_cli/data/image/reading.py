"""How image files become samples: the options of the sources of your own images, and what they give."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from bigmodel_cli.core.specs import ImageSpec, Interpolation, Spec, ValueRange
from bigmodel_cli.core.types import Source
from bigmodel_cli.data.image.files import ImageFiles
from bigmodel_cli.data.image.listing import Item
from bigmodel_cli.data.image.own_size import choose_size
from bigmodel_cli.data.image.peculiar import peculiar_notes
from bigmodel_cli.data.image.value_range import choose_range

Size = Annotated[
    int | None, Field(ge=8, le=2048, description="pixels; null: the checkpoint's, else the images' own, to 224")
]
Crop = Annotated[
    float | None,
    Field(ge=0.5, le=1, description="fraction of the stored square's side used in evaluation; null: by the size"),
]
Cache = Literal["auto", "off"]
Channels = Literal[1, 3]


@dataclass(frozen=True)
class Reading:
    """The options with which image files are read; see :class:`ImageFiles`. None: the data or a checkpoint decides."""

    size: int | None = None
    crop: float | None = None
    interpolation: Interpolation | None = None
    channels: Channels = 3
    value_range: ValueRange | None = None
    skip_bad: bool = False
    cache: Cache = "auto"

    def open(
        self,
        splits: Mapping[str, Sequence[Item]],
        classes: tuple[str, ...],
        like: Spec | None,
        fits: bool,
        notes: list[str],
    ) -> tuple[ImageSpec, dict[str, Callable[[], Source]]]:
        """The spec and the loaders of the images in `splits`; what a person should know is added to `notes`.

        `like` and `fits` are as in :func:`bigmodel_cli.engine.build.data.load_data`.
        """
        first = splits["train" if "train" in splits else min(splits)]
        size, crop, chosen = choose_size(first, like, self.size, self.crop)
        value_range, ranged = choose_range(first, like, self.value_range, fits)
        how = self.interpolation or (like.interpolation if isinstance(like, ImageSpec) else "bilinear")
        side = round(size / crop)
        notes += [*chosen, *ranged, *peculiar_notes(splits)]

        @functools.cache
        def load(split: str) -> Source:
            files = ImageFiles(splits[split], side, self.channels, split, self.skip_bad, self.cache, how, value_range)
            notes.extend(files.notes)
            return files

        spec = ImageSpec(
            self.channels, size, size, classes, square=side, crop=crop, interpolation=how, value_range=value_range
        )
        return spec, {split: functools.partial(load, split) for split in splits}
