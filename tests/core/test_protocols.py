"""What tasks, sources and specs declare: wrappers satisfy a protocol where what they wrap does, and specs register."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import pytest
import torch
from torch import Tensor

from bigmodel_cli.adapt.dpo import Preference
from bigmodel_cli.adapt.regularise import Distilled, Penalised
from bigmodel_cli.core import specs
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import losses, tasks
from bigmodel_cli.core.sources import (
    HistorySource,
    LabelledSource,
    OrderedSource,
    Source,
    SourceWrapper,
    VariableLengthSource,
)
from bigmodel_cli.core.tasks import Classifies, EncodesTexts, Generates, Predicts, Task, TaskWrapper
from bigmodel_cli.data.balance import CyclicSource
from bigmodel_cli.data.subset import Subset
from bigmodel_cli.engine.build.model import build_spec
from bigmodel_cli.engine.device.device_cache import Pinned, Resident
from bigmodel_cli.engine.training.cached_features import OnFeatures
from bigmodel_cli.engine.training.class_weighted_loss import Weighted
from bigmodel_cli.engine.training.reference_outputs import WithReferences
from bigmodel_cli.export.exported_model import RawImageTask

CAPABILITIES = (Classifies, Predicts, EncodesTexts, Generates)
DOES = {
    "image_classification": {Classifies, Predicts},
    "text_classification": {Classifies, Predicts, EncodesTexts},
    "multi_label_classification": {Predicts},
    "regression": {Predicts},
    "translation": {Predicts, EncodesTexts},
    "language_modeling": {Generates},
}


def task_called(name: str) -> Any:
    entry = tasks.get(name)
    return entry(entry.meta["spec_type"].typical(), losses.get("cross_entropy")(), lambda x, *_: x)


@pytest.mark.parametrize("name", tasks.names())
def test_every_registered_task_is_a_task(name: str) -> None:
    task = task_called(name)
    assert isinstance(task, Task) and task.name == name
    assert isinstance(task.spec, tasks.get(name).meta["spec_type"])
    if name in DOES:
        assert {protocol for protocol in CAPABILITIES if isinstance(task, protocol)} == DOES[name]


@pytest.mark.parametrize("name", tasks.names())
def test_a_wrapped_task_does_what_the_task_does_and_no_more(name: str) -> None:
    task = task_called(name)
    wrapped: list[TaskWrapper] = [
        Preference(task, 0.1),
        Penalised(task, lambda: torch.zeros(())),
        Distilled(task, lambda loss, logits, batch: loss, lambda batch, key: {}),
        OnFeatures(task),
        RawImageTask(task, None),
        Penalised(OnFeatures(task), lambda: torch.zeros(())),
    ]
    if isinstance(task, Classifies):
        wrapped.append(Weighted(task, torch.ones(task.spec.num_classes)))
    for one in wrapped:
        assert isinstance(one, Task), type(one)
        assert [isinstance(one, p) for p in CAPABILITIES] == [isinstance(task, p) for p in CAPABILITIES], type(one)
        assert one.spec is task.spec and one.inputs == task.inputs
        # What isinstance looks at from Python 3.12 on, which sees nothing of __getattr__.
        assert {n for n in dir(task) if n[0] != "_"} <= {
            n for n in dir(one) if inspect.getattr_static(one, n, one) is not one
        }


def test_a_wrapper_overrides_what_it_defines_and_only_that() -> None:
    task = task_called("language_modeling")
    pairs = Preference(task, 0.1)
    assert (pairs.unit, pairs.best) == ("pairs", ("reward_accuracy", "max")) and pairs.report == task.report
    assert isinstance(
        RawImageTask(task_called("image_classification"), None).for_data(specs.ImageSpec.typical()), RawImageTask
    )


class Plain:
    """Four samples."""

    def __len__(self) -> int:
        return 4

    def gather(self, indices: Tensor) -> dict[str, Tensor]:
        return {"x": indices * 10, "index": indices}

    def name(self, index: int) -> str:
        return f"sample {index}"


class Labelled(Plain):
    labels = torch.tensor([0, 1, 0, 1])


class OfLengths(Plain):
    lengths = torch.tensor([3, 5, 2, 7])


class Ordered(Labelled, OfLengths):
    def order(self, generator: torch.Generator, steps: int) -> Tensor:
        return torch.arange(4)


class OfUsers(Plain):
    def histories(self, users: torch.Tensor) -> torch.Tensor:
        return users[:, None] + 1

    trained = known = histories


SOURCES = (LabelledSource, VariableLengthSource, OrderedSource, HistorySource)


@pytest.mark.parametrize(
    "source", [Plain(), Labelled(), OfLengths(), Ordered(), OfUsers()], ids=lambda s: type(s).__name__
)
def test_a_wrapped_source_has_what_the_source_has_and_no_more(source: Any) -> None:
    has = [isinstance(source, p) for p in SOURCES]
    for same in (SourceWrapper(source), Pinned(source), WithReferences(source, {}), Pinned(WithReferences(source, {}))):
        assert isinstance(same, Source) and [isinstance(same, p) for p in SOURCES] == has, type(same)
    part = Subset(source, torch.tensor([3, 1]))
    assert [isinstance(part, p) for p in SOURCES] == [*has[:2], False, has[3]], "an order is of all samples"
    if has[0]:
        assert part.labels.tolist() == [1, 1]
    if has[1]:
        assert part.lengths.tolist() == [7, 5]
    assert (len(part), part.name(0), part.gather(torch.tensor([1]))["x"].item()) == (2, "sample 3", 10)
    held = Resident(source, source.gather(torch.arange(4)))
    assert [isinstance(held, p) for p in SOURCES] == [has[0], False, *has[2:]], "what is held is padded to one length"
    assert not isinstance(CyclicSource(source), OrderedSource) and CyclicSource(source).name(5) == "sample 1"


@dataclass(frozen=True)
class RatingSpec:
    """A kind of spec that this version does not have."""

    kind: ClassVar[str] = "ratings"
    users: int

    @property
    def classes(self) -> tuple[str, ...]:
        return ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return specs.checked(cls, values)  # type: ignore[no-any-return]

    def with_(self, **changes: Any) -> Self:
        return type(self)(**{**asdict(self), **changes})

    @classmethod
    def typical(cls) -> Self:
        return cls(100)


def test_a_new_kind_of_spec_needs_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"kind": "ratings", "users": 7}
    with pytest.raises(InputError, match=r"file: input of kind 'ratings'; expected image or text"):
        build_spec(values, "file")
    monkeypatch.setattr(specs, "_KINDS", dict(specs._KINDS))
    specs.register(RatingSpec)
    assert build_spec(values, "file") == RatingSpec(7)
    with pytest.raises(ValueError, match="registered twice"):
        specs.register(type("Other", (), {"kind": "ratings"}))  # type: ignore[type-var]


@pytest.mark.parametrize("kind", [None, 3, ["image"], {}, "no"])
def test_a_kind_that_is_none_is_refused(kind: Any) -> None:
    with pytest.raises(InputError, match="input of kind"):
        specs.spec_type(kind)
