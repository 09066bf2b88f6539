"""The served model: an export folder with preprocessing of samples and softmax of logits.

Shapes: B batch, C channels, H height, W width, T tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.core.image.images import image_header
from bigmodel_cli.core.preprocessing import prepare, raw_pixels
from bigmodel_cli.core.readers.text_samples import AS_FOUND, Reading
from bigmodel_cli.core.registry import answers, readers, tasks
from bigmodel_cli.core.specs import ImageSpec, TextSpec
from bigmodel_cli.core.tokenizers.tokens import encode_truncated, is_cut
from bigmodel_cli.serve.http_errors import HttpRefusal
from bigmodel_cli.serve.uploads import IMAGES, TEXTS, Limits, images, texts
from bigmodel_cli.tasks.answers import answer_kind, answer_name

if TYPE_CHECKING:
    import numpy as np

    from bigmodel_cli.core.specs import Spec
    from bigmodel_cli.export.folder import ExportFolder, Run
    from bigmodel_cli.tasks.answers import Answer


@dataclass(frozen=True)
class Part:
    """One sample of a request: `prepare` gives its input, without the batch dimension; `pixels` are held meanwhile.

    `said` is what the reply says of the sample beside the answer; `prepare` may add to it.
    """

    name: str
    pixels: int
    prepare: Callable[[], Any]
    said: dict[str, Any] = field(default_factory=dict)


class Reader(Protocol):
    """Splits a request body into samples, prepares each, and collates them into a batch, for one kind of input."""

    kind: str
    content: Mapping[str, Any]
    """The bodies that it reads by their types, as OpenAPI says it."""

    def parts(self, content_type: str, body: bytes, limits: Limits) -> Sequence[Part]:
        """The samples in the body, each with the size that its preparation will take memory for."""
        ...

    def batch(self, samples: Sequence[np.ndarray]) -> np.ndarray: ...

    def example(self) -> np.ndarray:
        """A dummy sample, to check that the model responds."""
        ...


@runtime_checkable
class ReadsQueries(Reader, Protocol):
    """A reader whose requests fit in an address."""

    query_path: str
    """The further path for them, which takes POST too."""

    def query(self, given: Mapping[str, str]) -> bytes:
        """The body that says the same as the parameters `given`."""
        ...


@dataclass(frozen=True)
class ImageReader:
    """(C,H,W) float32 samples; with `plain`, (H,W,C) uint8, resized to `size` (H,W) if the model needs a fixed size."""

    how: Mapping[str, Any]
    spec: ImageSpec
    plain: bool = False
    size: tuple[int, int] | None = None
    kind = "image"
    content = IMAGES

    def parts(self, content_type: str, body: bytes, limits: Limits) -> Sequence[Part]:
        given = images(content_type, body, limits)
        return [Part(name, _pixels(raw), partial(self._one, name, raw, limits)) for name, raw in given]

    def _one(self, name: str, raw: bytes, limits: Limits) -> np.ndarray:
        if not raw:
            raise HttpRefusal(400, f"{name}: empty", "expected an image")
        try:
            if self.plain:
                return raw_pixels(raw, name, self.spec, self.size, limits.pixels)
            return prepare(raw, name, self.how, limits.pixels)
        except InputError as error:
            raise HttpRefusal(_status(raw, limits.pixels), error.what, error.expected, error.hint) from None

    def batch(self, samples: Sequence[np.ndarray]) -> np.ndarray:
        import numpy as np

        return np.stack(samples)

    def example(self) -> np.ndarray:
        import numpy as np

        spec = self.spec
        if self.plain:
            size = self.size or ((spec.square, spec.square) if spec.square else (spec.height, spec.width))
            return np.zeros((*size, spec.channels), np.uint8)
        return np.zeros((spec.channels, spec.height, spec.width), np.float32)


def _pixels(raw: bytes) -> int:
    """Width times height, from the header alone; 0 if there is none, which :meth:`ImageReader._one` reports."""
    try:
        _, width, height, _ = image_header(raw)
    except Exception:  # a damaged header can raise a dozen types
        return 0
    return width * height


def _status(raw: bytes, most: int) -> int:
    """The HTTP status for a refused image: too large, damaged, or not a supported image."""
    from PIL import Image

    try:
        _, width, height, _ = image_header(raw)
    except Image.DecompressionBombError:
        return 413
    except Exception:  # a damaged header can raise a dozen types
        return 415
    return 413 if width * height > most else 400


@dataclass(frozen=True)
class TextReader:
    """(T,) int64 samples: token ids, truncated to the model's context window, which the reply says as ``cut``."""

    spec: TextSpec
    how: Reading = AS_FOUND
    """How tables are read."""
    kind = "text"
    content = TEXTS

    def parts(self, content_type: str, body: bytes, limits: Limits) -> Sequence[Part]:
        found = texts(content_type, body, limits, self.how)
        parts = []
        for name, text in found:
            said: dict[str, Any] = {}
            parts.append(Part(name, 0, partial(self._one, text, said), said))
        return parts

    def _one(self, text: str, said: dict[str, Any]) -> np.ndarray:
        import numpy as np

        try:
            ids = encode_truncated(text, self.spec, framed=True)
            said["cut"] = len(ids) == self.spec.context and is_cut(text, self.spec, framed=True)
        except InputError as error:  # a character outside the vocabulary
            raise HttpRefusal(400, error.what, error.expected, error.hint) from None
        return np.array(ids or [self._pad()], np.int64)

    def _pad(self) -> int:
        from bigmodel_cli.core.special_tokens import PAD
        from bigmodel_cli.core.tokenizers.tokens import tokenizer

        return tokenizer(self.spec).special.get(PAD, 0)

    def batch(self, samples: Sequence[np.ndarray]) -> np.ndarray:
        import numpy as np

        rows = np.full((len(samples), max(map(len, samples))), self._pad(), np.int64)
        for row, sample in zip(rows, samples, strict=True):
            row[: len(sample)] = sample
        return rows

    def example(self) -> np.ndarray:
        import numpy as np

        return np.full(min(4, self.spec.context), self._pad(), np.int64)


@readers.register("image")
def image_reader(export: ExportFolder) -> Reader:
    """Images, prepared as preprocess.json says or left to the graph."""
    size = export.size if export.takes_pixels else None
    return ImageReader(export.preprocess, export.spec, export.takes_pixels, size)


@readers.register("text")
def text_reader(export: ExportFolder) -> Reader:
    """Texts, as token ids."""
    return TextReader(export.spec, reading_of(export.about))


def reading_of(about: Mapping[str, Any]) -> Reading:
    """The column of texts that the recipe in an export.json names, which anyone may have written.

    The encoding is found for each table: clients differ.
    """
    found: Any = about
    for key in ("recipe", "data", "columns", "text"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return Reading({"text": found}) if isinstance(found, str) else AS_FOUND


@dataclass(frozen=True)
class ServedModel:
    """A loaded model. `about` is the response of ``/model``."""

    run: Run
    reader: Reader
    labels: tuple[str, ...]
    about: Mapping[str, Any]
    spec: Spec
    kind: Answer

    @property
    def outputs(self) -> int:
        """The number of classes, labels, numbers or items."""
        return len(self.labels)

    def answer(self, samples: Sequence[np.ndarray]) -> np.ndarray:
        """Prepared samples -> values (B,K): probabilities, or numbers in the units of the data.

        Raises:
            BigmodelError: the logits are not finite, or have the wrong shape.
        """
        import numpy as np

        logits = np.asarray(self.run(self.reader.batch(samples)), np.float64)
        if logits.shape != (len(samples), len(self.labels)) or not np.isfinite(logits).all():
            raise BigmodelError(f"the model's logits of shape {logits.shape} are not finite, or have the wrong shape")
        return self.kind.values(logits, self.spec)

    def to_json(self, values: np.ndarray, top: int) -> dict[str, Any]:
        """The answer for one sample from its values (K,), with at most `top` alternatives."""
        chosen = [(name, float(f"{value:.6g}")) for name, value in self.kind.choose(values, self.spec, top)]
        return self.kind.to_json(chosen, self.spec)


def open_model(folder: Path, trust: bool = False) -> ServedModel:
    """Load the export in `folder`; one whose format can hold code only with `trust`.

    Raises:
        InputError: the folder is not an export, its files have changed, or it is not a classifier.
        MachineError: its runtime is not installed.
    """
    from bigmodel_cli.export.folder import read_folder

    export = read_folder(folder)
    task = tasks.found.get(export.about["task"])  # as the source says it: a task imports torch
    if task is None or (kind := task.meta.get("answers")) not in answers.found:
        expected = f"serve answers with {', '.join(answers.names())} only"
        raise InputError(f"{folder}: an export for {export.about['task']}", expected)
    entry = readers.get(export.spec.kind)
    reader: Reader = entry(export)
    about: dict[str, Any] = {
        "name": export.about["arch"],
        "format": export.about["format"],
        "takes": reader.kind,
        "answers": answer_name(kind, export.spec),
        "classes": list(export.labels),
        "digest": export.digest,
    }
    if isinstance(export.spec, TextSpec):
        about["context"] = export.spec.context
    its_answer = answer_kind(kind, export.spec)
    served = ServedModel(export.open(trust), reader, export.labels, about, export.spec, its_answer)
    of_its_own = entry.meta.get("served")
    return served if of_its_own is None else of_its_own(served, export, trust)  # type: ignore[no-any-return]
