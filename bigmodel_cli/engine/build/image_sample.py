"""One image of a data set, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.recipe import DataSection
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.specs import ImageSpec
from bigmodel_cli.engine.build.data import load_data, load_split

if TYPE_CHECKING:
    from PIL.Image import Image

WRITTEN = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


def image_sample(name: str, index: int, folder: Path | None = None) -> tuple[Image, str]:
    """Image `index` of the test split of the data set `name`, or of val where it has none, and its class.

    Raises:
        InputError: it is not a data set of images with classes, or has fewer images.
    """
    import torch
    from PIL import Image

    section = DataSection(name=data.get(name).name, dir=None if folder is None else str(folder))
    bundle = load_data(section)
    if not isinstance(bundle.spec, ImageSpec) or not bundle.spec.classes:
        raise InputError(f"--data {name}: not a data set of images with classes", "expected one such as digits")
    source = load_split(bundle, section, "test" if "test" in bundle.load else "val")
    if index >= len(source):
        raise InputError(f"--index {index}", f"{name} has {len(source):,} such images")
    batch = source.gather(torch.tensor([index]))
    pixels = batch["image"][0].permute(1, 2, 0).squeeze(-1).numpy()
    return Image.fromarray(pixels), bundle.spec.classes[int(batch["label"][0])]


def write_picture(picture: Image, file: Path) -> None:
    """Write the picture, in the format that the suffix of `file` says.

    Raises:
        InputError: it says none that takes such a picture.
        MachineError: the file cannot be written.
    """
    from PIL import Image

    kind = Image.registered_extensions().get(file.suffix.lower())
    if kind not in WRITTEN:
        raise InputError(f"{file}: the suffix names no picture", "expected .png, .jpg, .webp, .bmp or .tiff")
    atomic_files.replace(file, lambda draft: picture.save(draft, kind), lambda: picture.width * picture.height)
