"""The model behind the service: an export folder, its samples prepared and its logits made probabilities.

Shapes: B batch, C channels, H height, W width, T tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.core.images import image_header
from bigmodel_cli.core.preprocessing import prepare, raw_pixels
from bigmodel_cli.core.specs import ImageSpec, TextSpec
from bigmodel_cli.serve.http_errors import HttpRefusal
from bigmodel_cli.serve.uploads import Limits, images, texts

if TYPE_CHECKING:
    import numpy as np

    from bigmodel_cli.export.folder import Run


class Reader(Protocol):
    """How a request's body becomes samples, and samples a batch, for one kind of input."""

    kind: str

    def read(self, content_type: str, body: bytes, limits: Limits) -> list[tuple[str, np.ndarray]]:
        """Each sample of the body: its name, and its input without the batch dimension."""
        ...

    def batch(self, samples: Sequence[np.ndarray]) -> np.ndarray: ...

    def example(self) -> np.ndarray:
        """A sample of no meaning, to ask whether the model answers."""
        ...


@dataclass(frozen=True)
class ImageReader:
    """(C,H,W) float32 samples; with `plain`, (H,W,C) uint8 ones, of `size` (H,W) where the model takes no other."""

    how: Mapping[str, Any]
    spec: ImageSpec
    plain: bool = False
    size: tuple[int, int] | None = None
    kind = "image"

    def read(self, content_type: str, body: bytes, limits: Limits) -> list[tuple[str, np.ndarray]]:
        return [(name, self._one(name, raw, limits)) for name, raw in images(content_type, body, limits)]

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


def _status(raw: bytes, most: int) -> int:
    """What HTTP calls the fault of an image that was refused: too large, damaged, or none that we read."""
    from PIL import Image

    try:
        _, width, height, _ = image_header(raw)
    except Image.DecompressionBombError:
        return 413
    except Exception:  # a damaged header raises a dozen kinds
        return 415
    return 413 if width * height > most else 400


@dataclass(frozen=True)
class TextReader:
    """(T,) int64 samples: token ids, cut to the model's context."""

    spec: TextSpec
    kind = "text"

    def read(self, content_type: str, body: bytes, limits: Limits) -> list[tuple[str, np.ndarray]]:
        import numpy as np

        from bigmodel_cli.core.tokens import encode_truncated

        try:
            found = [(name, encode_truncated(text, self.spec, framed=True)) for name, text in texts(body, limits)]
        except InputError as error:  # a character that the model does not know
            raise HttpRefusal(400, error.what, error.expected, error.hint) from None
        return [(name, np.array(ids or [self._pad()], np.int64)) for name, ids in found]

    def _pad(self) -> int:
        from bigmodel_cli.core.special_tokens import PAD
        from bigmodel_cli.core.tokens import tokenizer

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


@dataclass(frozen=True)
class ServedModel:
    """What the service answers with. `about`: what ``/model`` tells of it."""

    run: Run
    reader: Reader
    labels: tuple[str, ...]
    about: Mapping[str, Any]

    def answer(self, samples: Sequence[np.ndarray]) -> np.ndarray:
        """Prepared samples -> probabilities (B,K).

        Raises:
            BigmodelError: the model's answer is not finite, or of another shape.
        """
        import numpy as np

        logits = np.asarray(self.run(self.reader.batch(samples)), np.float64)
        if logits.shape != (len(samples), len(self.labels)) or not np.isfinite(logits).all():
            raise BigmodelError(f"the model's answer of shape {logits.shape} is not finite, or not of the classes")
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(odds / odds.sum(1, keepdims=True))

    def likeliest(self, probabilities: np.ndarray, top: int) -> list[dict[str, Any]]:
        """The `top` classes of (K,) probabilities, likeliest first."""
        best = probabilities.argsort(kind="stable")[::-1][:top]
        return [{"class": self.labels[i], "probability": round(float(probabilities[i]), 6)} for i in best]


def open_model(folder: Path) -> ServedModel:
    """The export in `folder`, ready to answer.

    Raises:
        InputError: the folder is no export, its files have changed, or it does not sort inputs into classes.
        MachineError: its runtime is not installed.
    """
    from bigmodel_cli.export.folder import read_folder

    export = read_folder(folder)
    reader: Reader
    if export.about["task"] == "image_classification":
        size = export.size if export.takes_pixels else None
        reader = ImageReader(export.preprocess, export.spec, export.takes_pixels, size)
    elif export.about["task"] == "text_classification":
        reader = TextReader(export.spec)
    else:
        raise InputError(f"{folder}: an export for {export.about['task']}", "serve answers with classes only")
    about = {
        "name": export.about["arch"],
        "format": export.about["format"],
        "takes": reader.kind,
        "classes": list(export.labels),
        "digest": export.digest,
    }
    return ServedModel(export.open(), reader, export.labels, about)
