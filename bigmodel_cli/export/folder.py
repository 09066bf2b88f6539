"""An export is a folder: the model file, its description, a runnable example, and a proof.

    model.<suffix>    the model; some formats have more files beside it
    labels.json       the class names, in the order of the logits
    preprocess.json   how a sample becomes the model's input, step by step
    export.json       what this is: format, architecture, input, recipe, checkpoint
    proof.json        the comparison with its source, and the SHA-256 of each model file
    example.py        runs it on one sample, with only the format's runtime
    MODEL_CARD.md     data, recipe, metrics with intervals, limits, digests
    SHA256SUMS        the digest of every other file; its own digest is that of the export

Reading and running an export imports torch only if the format's runtime needs it.

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

from bigmodel_cli.core import interactions  # noqa: F401  registers its spec, without the tasks and their torch
from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.core.files.regular_files import read_regular, require_few_containers
from bigmodel_cli.core.output_values import marked
from bigmodel_cli.core.processes.call_limit import bounded
from bigmodel_cli.core.registry import Entry, exports, losses, models, tasks
from bigmodel_cli.core.specs import spec_type
from bigmodel_cli.export import checksums
from bigmodel_cli.export.agreement import disagreement
from bigmodel_cli.export.checksums import SUMS, digests, read_sums

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import nn

MODEL, EXPORT, LABELS, PREPROCESS, PROOF = "model", "export.json", "labels.json", "preprocess.json", "proof.json"
EXAMPLE, CARD = "example.py", "MODEL_CARD.md"
MAX_JSON_BYTES = 1 << 27  # a vocabulary takes a few million

Run = Callable[..., "ndarray"]
"""Input arrays to logits (B,K) float32. Inputs: preprocessed float32 images (B,C,H,W) or token ids (B,T) int64; with
the preprocessing in the graph, raw uint8 images (B,H,W,C)."""


def is_export(path: Path) -> bool:
    """Whether `path` is a folder written by ``bigmodel export``."""
    return (path / EXPORT).is_file()


@dataclass(frozen=True)
class ExportFolder:
    """An export as described by its JSON files; the model itself is loaded by :meth:`open`.

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
        """The format, whose `meta` has the suffix, the runtime and the packages it needs."""
        return exports.get(self.about["format"])

    @property
    def model(self) -> Path:
        return self.path / (MODEL + self.entry.meta["suffix"])

    @property
    def digest(self) -> str:
        """SHA-256 of SHA256SUMS, and so of the whole folder; of an export made without it, of its model files."""
        if self.has_sums:
            return next(iter(digests(self.path, [self.path / SUMS]).values()))
        files = self.files
        if len(files) == 1:
            return next(iter(files.values()))
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    @property
    def has_sums(self) -> bool:
        """Whether SHA256SUMS covers the folder. Exports made by older versions have digests of the model only."""
        return "checksums" in self.about or (self.path / SUMS).exists()

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of each model file at the time of the proof, by its path in the folder.

        Raises:
            InputError: the proof has no digest of the model itself.
        """
        files = self.proof.get("files")
        own = self.model.name  # a file, or a folder of files
        if not isinstance(files, dict) or not any(name == own or name.startswith(own + "/") for name in files):
            raise InputError(f"{self.path / PROOF}: no digest of {own}", hint="restore it, or export it again")
        return files

    @property
    def takes_pixels(self) -> bool:
        """Whether it takes raw uint8 images (B,H,W,C), with the preprocessing in the graph."""
        return bool(self.about["with_preprocessing"])

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the raw images it takes; None: any.

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
        """The input spec: size and channels, or vocabulary; and the classes."""
        values = dict(self.about["input"])
        try:
            spec = spec_type(values.pop("kind")).from_dict(values)
        except KeyError:
            raise InputError(f"{self.path / EXPORT}: no input described", hint="export it again") from None
        task = tasks.found.get(self.about["task"])
        loss = losses.found.get(str(self.about["recipe"].get("loss", {}).get("name", "")))
        if task is None or loss is None or task.meta.get("answers") != "classes":
            return spec
        return marked(spec, loss.meta.get("probabilities", True))  # exports of earlier versions do not say it

    def verify(self) -> None:
        """Check every file against its digest, and that the files agree with each other.

        Raises:
            InputError: a file has changed since the export was made, is missing, or contradicts another.
        """
        files = self.files
        sums = read_sums(self.path) if self.has_sums else files
        missing = sorted({*files, *((EXPORT, LABELS, PREPROCESS, PROOF) if self.has_sums else ())} - set(sums))
        if missing:
            raise InputError(f"{self.path / SUMS}: no digest of {missing[0]}", hint="restore it, or export it again")
        checksums.verify(self.path, sums)
        self._check_agreement()

    def _check_agreement(self) -> None:
        """Programs read class names and preprocessing from their own files, bigmodel from export.json."""
        if self.labels != self.spec.classes:
            raise InputError(
                f"{self.path / LABELS}: not the classes of {EXPORT}", hint="restore it, or export it again"
            )
        fixed = self.entry.meta.get("sizes") == "fixed"
        key = disagreement(self.spec, self.about["input"], self.preprocess, self.takes_pixels, fixed)
        if key is not None:
            what = f"{self.path / PREPROCESS}: another {key} than {EXPORT}"
            raise InputError(what, hint="restore it, or export it again")

    def open(self, trust: bool = False) -> Run:
        """Load the model to run on the CPU, for any batch size, with as many threads as torch.

        Args:
            trust: open a format that can hold code, which then runs with the user's rights.

        Raises:
            InputError: its files do not match their digests, its format can hold code and `trust` is not set, or the
                file does not load.
            MachineError: the format needs a package that is not installed.
        """
        check = self.entry.meta.get("check")
        if check is None and not trust:
            what = f"{self.path}: the format {self.entry.name} can hold code, which would run with your rights"
            raise InputError(what, hint="add --trust if you trust whoever made it; or export it as onnx")
        self.verify()
        if check is not None:
            check(self.model)
        return load_model_file(self.entry, self.model, self.build, InputError)

    def build(self) -> nn.Module:
        """Build the architecture with random weights, for formats that hold only weights."""
        architecture = models.get(self.about["arch"])
        options = architecture.options(dict(self.about["arch_args"]), "model")
        model: nn.Module = architecture(self.spec, **options)
        from bigmodel_cli.models.adapters.altered import altered

        return altered(model, self.about["recipe"].get("model", {}))


def load_model_file(
    entry: Entry, file: Path, build: Callable[[], nn.Module], fault: type[BigmodelError] = BigmodelError
) -> Run:
    """Load the model in `file` with the runtime of its format.

    Args:
        fault: what it is that the file does not load: by default a fault of the program that has just written it.

    Raises:
        BigmodelError: the file does not load.
    """
    try:
        with bounded():
            return entry.meta["run"](file, build)  # type: ignore[no-any-return]
    except BigmodelError:
        raise
    except Exception as error:  # runtimes raise their own types, some derived directly from Exception
        raise fault(f"{file}: the {entry.name} file does not load: {first_line(error)}") from error


def read_folder(path: Path) -> ExportFolder:
    """Read the export in the folder `path`.

    Raises:
        InputError: it is not an export, or one of its JSON files is damaged.
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
    _require_objects(path / EXPORT, about["recipe"], about["recipe"])
    _require_objects(path / PREPROCESS, preprocess, ("in_the_graph",))
    return ExportFolder(path, about, tuple(labels), preprocess, proof)


def _object(file: Path) -> dict[str, Any]:
    value = _json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file}: damaged", "expected a JSON object")
    return value


def _require_objects(file: Path, values: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Require that each of `keys` that is in `values` has a JSON object."""
    for key in keys:
        if not isinstance(values.get(key, {}), dict):
            raise InputError(f"{file}: damaged: {key} is no object", hint="export it again")


def _json(file: Path) -> Any:
    """The JSON in `file`, which must be a regular file: a device could go on for ever."""
    try:
        raw = read_regular(file, MAX_JSON_BYTES)
        require_few_containers(file, raw)
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read: {first_line(error)}", "export it again") from None


def model_files(folder: Path) -> list[Path]:
    """The files written by the format, sorted: all but those that every export has."""
    ours = {LABELS, PREPROCESS, EXPORT, PROOF, EXAMPLE, CARD, SUMS}
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return [p for p in found if p.parent != folder or p.name not in ours]


def first_line(error: BaseException) -> str:
    """The first line of the root cause: exporters wrap it in pages of advice."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
