"""An export is a folder: the model's file, what describes it, an example that runs it, and its proof.

    model.<suffix>    the model; some formats have more files beside it
    labels.json       the class names, in the order of the answers
    preprocess.json   how a sample becomes the model's input, step by step
    export.json       what this is: format, architecture, input, recipe, checkpoint
    proof.json        how it compared with its source, and the SHA-256 of each file of the model
    example.py        runs it on one sample, with the format's runtime alone
    MODEL_CARD.md     data, recipe, figures with intervals, limits, digests

Reading and running one imports no torch where the format's runtime needs none.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.core.registry import Entry, exports, models
from bigmodel_cli.core.specs import spec_type

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import nn

MODEL, EXPORT, LABELS, PREPROCESS, PROOF = "model", "export.json", "labels.json", "preprocess.json", "proof.json"
EXAMPLE, CARD = "example.py", "MODEL_CARD.md"
MOST_JSON = 1 << 27  # bytes; a vocabulary is a few millions

Run = Callable[..., "ndarray"]
"""Input arrays to logits (B,K) float32. Inputs: prepared float32 images (B,C,H,W), or token ids (B,T) int64; where
the preprocessing is in the graph, plain uint8 images (B,H,W,C)."""


def is_export(path: Path) -> bool:
    """Whether `path` is a folder that ``bigmodel export`` wrote."""
    return (path / EXPORT).is_file()


@dataclass(frozen=True)
class ExportFolder:
    """An export as its JSON files describe it; nothing of the model is loaded before :meth:`open`.

    `about` is export.json: format, arch, arch_args, task, input (the spec), recipe, checkpoint,
    with_preprocessing.
    """

    path: Path
    about: Mapping[str, Any]
    labels: tuple[str, ...]
    preprocess: Mapping[str, Any]
    proof: Mapping[str, Any]

    @property
    def entry(self) -> Entry:
        """The format: its `meta` has the suffix, the runtime and the packages it needs."""
        return exports.get(self.about["format"])

    @property
    def model(self) -> Path:
        return self.path / (MODEL + self.entry.meta["suffix"])

    @property
    def digest(self) -> str:
        """SHA-256 of the model's file; of the digests of all its files where it has several."""
        files = self.files
        if len(files) == 1:
            return next(iter(files.values()))
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file of the model when it was proven, by its path in the folder.

        Raises:
            InputError: the proof names none of the model itself.
        """
        files = self.proof.get("files")
        own = self.model.name  # a file, or a folder of files
        if not isinstance(files, dict) or not any(name == own or name.startswith(own + "/") for name in files):
            raise InputError(f"{self.path / PROOF}: no digest of {own}", hint="restore it, or export it again")
        return files

    @property
    def takes_pixels(self) -> bool:
        """Whether it takes plain uint8 images (B,H,W,C), the preparation being in the graph."""
        return bool(self.about["with_preprocessing"])

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the plain images that it takes; None: any.

        Raises:
            InputError: preprocess.json does not say it.
        """
        size = self.preprocess.get("size")
        if size == "any":
            return None
        if isinstance(size, dict) and all(isinstance(size.get(side), int) for side in ("height", "width")):
            return size["height"], size["width"]
        raise InputError(f"{self.path / PREPROCESS}: no size of images", hint="export it again")

    @functools.cached_property
    def spec(self) -> Any:
        """What its inputs are: size, channels or vocabulary, classes."""
        values = dict(self.about["input"])
        try:
            return spec_type(values.pop("kind")).from_dict(values)
        except KeyError:
            raise InputError(f"{self.path / EXPORT}: no input described", hint="export it again") from None

    def verify(self) -> None:
        """Hold the model's files to the digests in the proof.

        Raises:
            InputError: one has changed since it was proven, or is missing, or was never proven.
        """
        for name, digest in self.files.items():
            file = self.path / name
            if not file.resolve().is_relative_to(self.path.resolve()) or not file.is_file():
                raise InputError(f"{file}: not there", hint="restore it from a copy, or export it again")
            if digests(self.path, [file]) != {name: digest}:
                raise InputError(f"{file}: not the file that was proven", hint="restore it, or export it again")

    def open(self) -> Run:
        """The model, ready to run on the CPU with as many threads as torch has, any batch size.

        Raises:
            InputError: its files are not those that were proven.
            MachineError: the format needs a package that is not installed.
            BigmodelError: the file does not run.
        """
        self.verify()
        return opened(self.entry, self.model, self.build)

    def build(self) -> nn.Module:
        """The architecture with random weights, for formats that hold weights alone."""
        architecture = models.get(self.about["arch"])
        options = architecture.options(dict(self.about["arch_args"]), "model")
        model: nn.Module = architecture(self.spec, **options)
        pruned = self.about["recipe"].get("model", {}).get("pruned")
        if pruned:
            from bigmodel_cli.models.adapters.pruned import narrow

            narrow(model, pruned)
        return model


def opened(entry: Entry, file: Path, build: Callable[[], nn.Module]) -> Run:
    """The model in `file`, run by the runtime of its format.

    Raises:
        BigmodelError: the file does not load.
    """
    try:
        return entry.meta["run"](file, build)  # type: ignore[no-any-return]
    except BigmodelError:
        raise
    except Exception as error:  # runtimes raise kinds of their own, some of them straight from Exception
        raise BigmodelError(f"{file}: the {entry.name} file does not load: {first_line(error)}") from error


def read_folder(path: Path) -> ExportFolder:
    """The export in the folder `path`.

    Raises:
        InputError: it is none, or one of its JSON files is damaged.
    """
    if not is_export(path):
        what = f"{path}: not an export folder"
        raise InputError(what, f"expected one with {EXPORT} in it", "bigmodel export CKPT --format onnx")
    about, preprocess, proof = (_object(path / name) for name in (EXPORT, PREPROCESS, PROOF))
    labels = _json(path / LABELS)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"{path / LABELS}: damaged", "expected a list of names")
    wanted = {"format": str, "arch": str, "arch_args": dict, "task": str, "input": dict, "recipe": dict}
    for key, kind in {**wanted, "with_preprocessing": bool}.items():
        if not isinstance(about.get(key), kind):
            raise InputError(f"{path / EXPORT}: damaged: no {key}", "export it again")
    return ExportFolder(path, about, tuple(labels), preprocess, proof)


def _object(file: Path) -> dict[str, Any]:
    value = _json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file}: damaged", "expected an object")
    return value


def _json(file: Path) -> Any:
    try:
        if file.stat().st_size > MOST_JSON:
            raise InputError(f"{file}: {file.stat().st_size} bytes", f"expected at most {MOST_JSON}")
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read: {first_line(error)}", "export it again") from None


def model_files(folder: Path) -> list[Path]:
    """The files that the format wrote, in order: all but what every export has."""
    ours = {LABELS, PREPROCESS, EXPORT, PROOF, EXAMPLE, CARD}
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return [p for p in found if p.parent != folder or p.name not in ours]


def digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, by its path in the folder."""
    found = {}
    for file in files:
        with file.open("rb") as stream:
            found[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def first_line(error: BaseException) -> str:
    """Of what began it: exporters wrap the reason in pages of advice."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
