"""MNIST and its variants from IDX files, raw or gzipped, downloaded if missing."""

from __future__ import annotations

import functools
import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.types import DataBundle, ImageSpec
from bigmodel_cli.data.download import download
from bigmodel_cli.data.image.arrays import ImageArrays

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
IDX = (
    "train-images-idx3-ubyte|train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte|train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte|t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte|t10k-labels-idx1-ubyte.gz",
)  # fmt: skip
"""What each set has, by the same names. They may lie in the data folder itself too, but then only their owner knows
which set they are."""
DIGITS = tuple(str(k) for k in range(10))
MIRRORS = {
    "mnist": ["https://ossci-datasets.s3.amazonaws.com/mnist/"],
    "fashion-mnist": ["https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"],
    "kmnist": ["https://codh.rois.ac.jp/kmnist/dataset/kmnist/"],
}
"""HTTPS only: torchvision lists plain HTTP for the last two, which `download` refuses."""
SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
    "kmnist": {
        "train-images-idx3-ubyte.gz": "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
        "train-labels-idx1-ubyte.gz": "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
        "t10k-images-idx3-ubyte.gz": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
        "t10k-labels-idx1-ubyte.gz": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
    },
}
MAX_BYTES = 200_000_000  # MNIST's largest file is 47 MB; this bounds a gzip bomb


@data.register(folders=("mnist", "MNIST/raw"), files=IDX)
def mnist(root: Path) -> DataBundle:
    """70,000 handwritten digits, 28x28 (LeCun et al. 1998)."""
    return _bundle(root, "mnist", "MNIST", DIGITS)


@data.register("fashion-mnist", folders=("fashion-mnist", "FashionMNIST/raw"), files=IDX)
def fashion_mnist(root: Path) -> DataBundle:
    """70,000 images of clothing in 10 classes, 28x28 (Xiao et al. 2017)."""
    classes = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
    return _bundle(root, "fashion-mnist", "FashionMNIST", tuple(classes.split(",")))


@data.register(folders=("kmnist", "KMNIST/raw"), files=IDX)
def kmnist(root: Path) -> DataBundle:
    """70,000 cursive Japanese characters in 10 classes, 28x28 (Clanuwat et al. 2018)."""
    return _bundle(root, "kmnist", "KMNIST", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"))


def _bundle(root: Path, name: str, torchvision_name: str, classes: tuple[str, ...]) -> DataBundle:
    found = {split: tuple(_locate(root, name, torchvision_name, file) for file in FILES[split]) for split in FILES}
    total = hashlib.sha256()
    for path in found["train"]:
        total.update(path.read_bytes())

    @functools.cache
    def load(split: str) -> ImageArrays:
        images, labels = (read_idx(path) for path in found[split])
        if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
            shapes = f"{tuple(images.shape)} images, {tuple(labels.shape)} labels"
            raise InputError(f"{found[split][0]}: {shapes}", "expected (N, H, W) and (N,)")
        if images.shape[1:] != (28, 28):
            raise InputError(f"{found[split][0]}: images of {tuple(images.shape[1:])}", "expected 28x28")
        if int(labels.max()) >= len(classes):
            raise InputError(f"{found[split][1]}: label {int(labels.max())}", f"expected 0 to {len(classes) - 1}")
        return ImageArrays(images[:, None], labels.long(), split)

    spec = ImageSpec(1, 28, 28, classes)
    return DataBundle(spec, {s: functools.partial(load, s) for s in FILES}, total.hexdigest())


def _locate(root: Path, name: str, torchvision_name: str, file: str) -> Path:
    """The file below `root`, in our folder or torchvision's; downloaded if it is in neither.

    MNIST may also be in `root` itself. The others may not, since their file names are the same.
    """
    for folder in (root / name, root / torchvision_name / "raw", *([root] if name == "mnist" else [])):
        for candidate in (folder / file, folder / f"{file}.gz"):
            if candidate.is_file():
                return candidate
    return _fetch(root / name / f"{file}.gz", name)


def _fetch(path: Path, name: str) -> Path:
    return download([mirror + path.name for mirror in MIRRORS[name]], path, sha256=SHA256[name][path.name], what=name)


def read_idx(path: Path) -> Tensor:
    """The uint8 array in an IDX file, raw or gzipped.

    Raises:
        InputError: it is damaged, truncated, or of another type.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged or cut off ({error})", "delete it to have it downloaded again") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise InputError(f"{path}: not an IDX file of bytes", "expected MNIST's format")
    dimensions = raw[3]
    header = 4 + 4 * dimensions
    if not 1 <= dimensions <= 4 or len(raw) < header:
        raise InputError(f"{path}: truncated in its header")
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    expected = header
    size = 1
    for side in shape:
        size *= side
    expected += size
    if len(raw) != expected:
        raise InputError(f"{path}: {len(raw)} bytes", f"its header says {expected}")
    if size == 0:
        raise InputError(f"{path}: it is empty", "expected at least one sample")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=header).view(*shape)
