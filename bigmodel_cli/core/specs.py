"""Specs describe the data that a model is built for. They are plain values, stored in every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

from bigmodel_cli.core.conventions import Conventions
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.output_values import OutputValues, changed, plain_values, read_outputs
from bigmodel_cli.core.registry import tasks


def checked(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Build the dataclass `kind` from plain values, checking the types of its fields; lists become tuples.

    Raises:
        InputError: a field is missing, unknown, or of another type.
    """
    from pydantic import TypeAdapter, ValidationError

    unknown = sorted(set(values) - {f.name for f in fields(kind)})
    if unknown:
        raise InputError(f"unknown input.{unknown[0]}", "expected " + ", ".join(f.name for f in fields(kind)))
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"input.{where} = {first['input']!r}", first["msg"][0].lower() + first["msg"][1:]) from None


class Spec(Protocol):
    """Describes the data that a model is built for, and what is needed to use the model: plain values only."""

    kind: ClassVar[str]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label; empty if samples have no class."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The values as stored in a checkpoint, without the kind."""
        ...

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: a value is missing, unknown, of the wrong type, or inconsistent with the others.
        """
        ...

    def with_(self, **changes: Any) -> Self: ...

    @classmethod
    def typical(cls) -> Self:
        """A spec of typical size; the list of models counts parameters for it."""
        ...


AnySpec = TypeVar("AnySpec", bound=Spec)
_KINDS: dict[str, type[Spec]] = {}


def register(spec: type[AnySpec]) -> type[AnySpec]:
    """Decorator that lets checkpoints store specs of this class, under its ``kind``.

    Raises:
        ValueError: another class has that kind.
    """
    old = _KINDS.setdefault(spec.kind, spec)
    if old.__qualname__ != spec.__qualname__:
        raise ValueError(f"spec kind {spec.kind!r} is registered twice")
    return spec


def spec_type(kind: Any) -> type[Spec]:
    """The spec class with the given ``kind``, which a checkpoint or an export names.

    Raises:
        InputError: the kind is unknown.
    """
    if isinstance(kind, str) and kind not in _KINDS:
        for name in tasks.names():  # a task's file may define its own spec
            tasks.get(name)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InputError(f"input of kind {kind!r}", "expected " + " or ".join(_KINDS))
    return _KINDS[kind]


Interpolation = Literal["bilinear", "bicubic"]
ValueRange = tuple[float, float]
"""The gray levels (or floating-point numbers) that become black and white."""


@register
@dataclass(frozen=True)
class ImageSpec:
    """Images (C,H,W) with their class names and normalisation.

    `mean` and `std` are per channel on the 0..1 scale, measured on the train
    split; empty until then.

    `square`: an image file is cropped to its centred square and resized to this side; the
    model sees the centred fraction `crop` of that. None: the whole image is resized to H x W.
    `interpolation` is how images are resized; always antialiased. `value_range` is what becomes 0..255 in images of
    more than 8 bits; None: the high byte of 16 bits.
    """

    kind: ClassVar[str] = "image"

    channels: int
    height: int
    width: int
    classes: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    square: int | None = None
    crop: float = 1.0
    interpolation: Interpolation = "bilinear"
    value_range: ValueRange | None = None
    outputs: OutputValues = ()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        usual = {"interpolation": "bilinear", "value_range": None}  # not stored, as before there were others
        return {k: v for k, v in plain_values(self).items() if k not in usual or v != usual[k]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageSpec:
        """The spec in a checkpoint. Checkpoints are untrusted, so the values are validated.

        Raises:
            InputError: the values are invalid or inconsistent.
        """
        spec = checked(cls, read_outputs(values))
        if min(spec.channels, spec.height, spec.width, spec.num_classes) < 1:
            size = f"{spec.channels}x{spec.height}x{spec.width}, {spec.num_classes} classes"
            raise InputError(f"input is {size}", "expected at least 1 of each")
        if len(set(spec.classes)) != spec.num_classes:
            raise InputError(
                f"{spec.num_classes} classes with {len(set(spec.classes))} names", "expected one name each"
            )
        low, high = spec.value_range or (0, 1)
        if not (math.isfinite(low) and math.isfinite(high - low) and low < high):
            raise InputError(f"value_range is {[low, high]}", "expected two finite values, the lower first")
        for name, numbers, count in (
            ("mean", spec.mean, spec.channels),
            ("std", spec.std, spec.channels),
        ):
            if len(numbers) not in (0, count):
                raise InputError(f"{len(numbers)} values of {name}", f"expected {count}")
            if not all(math.isfinite(x) and (x > 0 or name != "std") for x in numbers):
                raise InputError(f"{name} is {list(numbers)}", "expected finite values, std above 0")
        return spec

    def with_(self, **changes: Any) -> ImageSpec:
        return changed(self, changes)  # type: ignore[no-any-return]

    @classmethod
    def typical(cls) -> ImageSpec:
        """The spec that the list of models counts parameters for."""
        return cls(1, 28, 28, tuple("0123456789"))


@register
@dataclass(frozen=True)
class TextSpec:
    """Text as token ids, with the tokenizer as plain values, so that a checkpoint contains it.

    `tokenizer` is a kind of :mod:`bigmodel_cli.core.tokenizers.tokens`; `vocabulary` lists its tokens by id (for
    ``bpe``, it holds the JSON of Hugging Face's tokenizers, and then that for targets, if they have another one with
    the same ids). `context` is the maximum number of tokens per input. `classes` are the class names for text
    classification. `chat` holds the prefix of each role of a conversation
    (:mod:`bigmodel_cli.core.chat.conversation`), for a model trained on conversations. `conventions`
    come with published weights.
    """

    kind: ClassVar[str] = "text"

    tokenizer: str
    vocabulary: tuple[str, ...]
    context: int
    classes: tuple[str, ...] = ()
    chat: tuple[str, ...] = ()
    conventions: Conventions | None = None
    outputs: OutputValues = ()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        values = plain_values(self)
        values["conventions"] = self.conventions.to_dict() if self.conventions else None
        return {k: v for k, v in values.items() if v or k not in ("chat", "conventions")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextSpec:
        """The spec in a checkpoint. Checkpoints are untrusted, so the values are validated.

        Raises:
            InputError: a value has the wrong type or is out of range.
        """
        spec = checked(cls, read_outputs(values))
        if not 1 <= spec.context <= 1 << 20:
            raise InputError(f"input has a context of {spec.context} tokens", f"expected 1 to {1 << 20}")
        if len(spec.chat) not in (0, 3) or not all(0 < len(part) <= 100 for part in spec.chat):
            raise InputError(f"input has a chat template of {len(spec.chat)} parts", "expected 3, one a role")
        if spec.conventions is not None:
            spec.conventions.check()
        return spec

    def with_(self, **changes: Any) -> TextSpec:
        return changed(self, changes)  # type: ignore[no-any-return]

    @classmethod
    def typical(cls) -> TextSpec:
        """The spec that the list of models counts parameters for: 256 tokens and two classes."""
        from bigmodel_cli.core.special_tokens import SPECIALS

        words = [f"w{i}" for i in range(256 - len(SPECIALS))]
        return cls("word", (*SPECIALS, *words), 64, ("no", "yes"))
