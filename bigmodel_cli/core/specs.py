"""What a model must know of its data to be built: plain values, which a checkpoint carries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Protocol, Self, TypeVar

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import tasks


def checked(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """The dataclass `kind` from plain values of the types that its fields declare, lists as tuples.

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
    """What a model must know of its data to be built, and a stranger to use it: plain values only."""

    kind: ClassVar[str]

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels' names, in their order; empty where samples have no class."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The values as a checkpoint keeps them, without the kind."""
        ...

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The spec of :meth:`to_dict`.

        Raises:
            InputError: a value is missing, unknown, of the wrong type, or does not fit the others.
        """
        ...

    def with_(self, **changes: Any) -> Self: ...

    @classmethod
    def typical(cls) -> Self:
        """One of an ordinary size: what the list of models counts parameters for."""
        ...


AnySpec = TypeVar("AnySpec", bound=Spec)
_KINDS: dict[str, type[Spec]] = {}


def register(spec: type[AnySpec]) -> type[AnySpec]:
    """Decorator: checkpoints may hold specs of this class, under its ``kind``.

    Raises:
        ValueError: another class has that kind.
    """
    old = _KINDS.setdefault(spec.kind, spec)
    if old.__qualname__ != spec.__qualname__:
        raise ValueError(f"spec kind {spec.kind!r} is registered twice")
    return spec


def spec_type(kind: Any) -> type[Spec]:
    """The class whose ``kind`` a checkpoint or an export names.

    Raises:
        InputError: there is none.
    """
    if isinstance(kind, str) and kind not in _KINDS:
        for name in tasks.names():  # a task's file may define a spec of its own, and is imported when it is needed
            tasks.get(name)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InputError(f"input of kind {kind!r}", "expected " + " or ".join(_KINDS))
    return _KINDS[kind]


@register
@dataclass(frozen=True)
class ImageSpec:
    """Images of C x H x W with class names, and how they are normalised.

    `mean` and `std` are per channel on the 0..1 scale, measured on the train
    split; empty until then.

    `square`: an image file becomes the square in its middle, resized to this side, and
    the model sees the middle `crop` of that; None: the whole image, pressed into H x W.
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

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageSpec:
        """The spec in a checkpoint, which is a stranger's word: its parts must agree with each other.

        Raises:
            InputError: they do not.
        """
        spec = checked(cls, values)
        if min(spec.channels, spec.height, spec.width, spec.num_classes) < 1:
            size = f"{spec.channels}x{spec.height}x{spec.width}, {spec.num_classes} classes"
            raise InputError(f"input is {size}", "expected at least 1 of each")
        if len(set(spec.classes)) != spec.num_classes:
            raise InputError(
                f"{spec.num_classes} classes with {len(set(spec.classes))} names", "expected one name each"
            )
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
        return replace(self, **changes)

    @classmethod
    def typical(cls) -> ImageSpec:
        """What the list of models counts parameters for."""
        return cls(1, 28, 28, tuple("0123456789"))


@register
@dataclass(frozen=True)
class TextSpec:
    """Text as token ids: the tokenizer as plain values, so that a checkpoint carries it.

    `tokenizer` is one of :mod:`bigmodel_cli.core.tokens`; `vocabulary` its tokens by id (for ``bpe`` the
    one element is the JSON of Hugging Face's tokenizers). `context` is the most tokens a model sees at once.
    `classes` are the labels' names where the text is classified. `chat` is what stands before a turn of each
    role of :mod:`bigmodel_cli.core.chat`, where the model was trained on conversations.
    """

    kind: ClassVar[str] = "text"

    tokenizer: str
    vocabulary: tuple[str, ...]
    context: int
    classes: tuple[str, ...] = ()
    chat: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return values if self.chat else {k: v for k, v in values.items() if k != "chat"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextSpec:
        """The spec in a checkpoint, which is a stranger's word.

        Raises:
            InputError: a value is of the wrong type, or the context is not a number of tokens.
        """
        spec = checked(cls, values)
        if not 1 <= spec.context <= 1 << 20:
            raise InputError(f"input has a context of {spec.context} tokens", f"expected 1 to {1 << 20}")
        if len(spec.chat) not in (0, 3) or not all(0 < len(part) <= 100 for part in spec.chat):
            raise InputError(f"input has a chat template of {len(spec.chat)} parts", "expected 3, one a role")
        return spec

    def with_(self, **changes: Any) -> TextSpec:
        return replace(self, **changes)

    @classmethod
    def typical(cls) -> TextSpec:
        """What the list of models counts parameters for: 256 tokens, as many as bytes; two classes."""
        from bigmodel_cli.core.special_tokens import SPECIALS

        words = [f"w{i}" for i in range(256 - len(SPECIALS))]
        return cls("word", (*SPECIALS, *words), 64, ("no", "yes"))
