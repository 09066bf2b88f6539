"""Several checkpoints as one: their answers averaged, or their weights. Shapes: K outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.core.answering import Answers
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.output_values import TEMPERATURE, output_values, uncalibrated, with_values
from bigmodel_cli.core.recipe import PrivacySection, StartSection
from bigmodel_cli.core.registry import losses, models
from bigmodel_cli.core.specs import ImageSpec, TextSpec
from bigmodel_cli.engine.build.compatibility import first_difference
from bigmodel_cli.engine.build.load import TrainedModel, load_trained
from bigmodel_cli.engine.training.weights_only import save_weights
from bigmodel_cli.tasks.answers import answer_name, scale, temperature, thresholds

AVERAGES = {"classes": "probabilities", "scores": "outputs", "labels": "sigmoids", "numbers": "outputs"}
"""What of the members is averaged, by kind of answer."""
Pair = tuple[list[float], list[float]]
"""Scale and shift."""


def average_answers(paths: Sequence[Path], out: Path) -> list[str]:
    """Write a checkpoint to `out` that answers with the mean of those at `paths`; returns lines for the user.

    Classes get the mean of the members' probabilities, each with its own temperature; labels the mean of theirs;
    numbers the mean of the numbers.

    Raises:
        InputError: they have other inputs, classes or tasks than the first, or answer with none of these.
    """
    members = _opened(paths)
    first = members[0]
    kind = _kind(first)
    for trained in members[1:]:
        _check_alike(first, trained, kind)
    spec, notes = _spec_of_all(members, kind)
    notes += _privacy_notes(members)
    about = [_member(trained, spec, kind) for trained in members]
    section = {"name": f"ensemble:{spec.kind}", "members": about, "average": AVERAGES[kind]}
    tensors = {f"members.{i}.network.{k}": v for i, m in enumerate(members) for k, v in m.model.state_dict().items()}
    meta = {**_meta(members, section), "input": {"kind": spec.kind, **spec.to_dict()}}
    save_weights(out, tensors, meta, {})
    load_trained(out)  # the same check as for anyone's file
    return notes


def average_weights(paths: Sequence[Path], out: Path) -> list[str]:
    """Write a checkpoint to `out` whose weights are the mean of those at `paths` (Wortsman et al. 2022, model soups).

    Raises:
        InputError: they have another architecture, other inputs or other classes than the first.
    """
    members = _opened(paths)
    first = members[0]
    for trained in members[1:]:
        for what, one, other in (
            ("model", _section(first), _section(trained)),
            ("input", uncalibrated(first.task.spec).to_dict(), uncalibrated(trained.task.spec).to_dict()),
        ):
            if one != other:
                key = next(k for k in sorted({*one, *other}) if one.get(k) != other.get(k))
                difference = first_difference(key, one.get(key), other.get(key), str(first.path), str(trained.path))
                hint = "without --average weights, their answers are averaged"
                raise InputError(f"--average weights: another {what}: {difference}", hint=hint)
    states = [trained.model.state_dict() for trained in members]
    mean = {key: _mean([state[key] for state in states]) for key in states[0]}
    spec = uncalibrated(first.task.spec)
    save_weights(out, mean, {**_meta(members, None), "input": {"kind": spec.kind, **spec.to_dict()}}, {})
    normalised = any("running_mean" in key for key in mean)
    notes = ["running statistics of BatchNorm are averaged too, and not measured again"] if normalised else []
    return notes + _privacy_notes(members)


def _opened(paths: Sequence[Path]) -> list[TrainedModel]:
    if len(paths) < 2:
        raise InputError("one run", "expected two or more", "bigmodel ensemble RUN RUN --out FILE")
    opened = [load_trained(path) for path in paths]
    for trained in opened:
        if models.get(trained.recipe.model.name).meta.get("combines"):
            raise InputError(f"{trained.path} is an ensemble", "expected its members", "bigmodel ensemble RUN RUN ...")
    return opened


def _privacy_notes(members: Sequence[TrainedModel]) -> list[str]:
    private = sum(bool(m.meta.get("privacy")) for m in members)
    line = f"{private} of {len(members)} members were trained privately: what they spent adds up, and none is claimed"
    return [line] if private else []


def _kind(trained: TrainedModel) -> str:
    """The kind of answer of a model."""
    task = trained.task
    kind = answer_name(task.answers, task.spec) if isinstance(task, Answers) else ""
    if kind not in AVERAGES or not isinstance(task.spec, (ImageSpec, TextSpec)):
        what = f"{trained.path}: {task.name.replace('_', ' ')}"
        raise InputError(what, "expected a model of classes, labels or numbers for images or texts")
    return kind


def _check_alike(first: TrainedModel, other: TrainedModel, kind: str) -> None:
    if other.task.name != first.task.name or _kind(other) != kind:
        names = [t.task.name.replace("_", " ") for t in (first, other)]
        kinds = f"{other.path}: {names[1]}, {_kind(other)}"
        raise InputError(kinds, f"{first.path} is for {names[0]}, {kind}")
    one, two = (_input_of(trained.task.spec) for trained in (first, other))
    for key in sorted({*one, *two}):
        if one.get(key) != two.get(key):
            difference = first_difference(key, one.get(key), two.get(key), str(first.path), str(other.path))
            raise InputError(f"members have other inputs: {difference}", "expected the same input and classes")
    if set(first.task.spec.classes) != set(other.task.spec.classes):
        extra = sorted(set(first.task.spec.classes) ^ set(other.task.spec.classes))
        raise InputError(f"{other.path}: other classes than {first.path}: {', '.join(extra[:3])}", "expected the same")


def _input_of(spec: Any) -> dict[str, Any]:
    """What must agree of the inputs: mean and deviation may differ, since each member gets its own."""
    return {k: v for k, v in spec.to_dict().items() if k not in ("classes", "outputs", "mean", "std")}


def _spec_of_all(members: Sequence[TrainedModel], kind: str) -> tuple[Any, list[str]]:
    """The first member's spec with the ensemble's output values, and lines for the user."""
    first = members[0]
    spec, count = first.task.spec, len(first.task.spec.classes)
    if kind == "labels":
        limits = torch.tensor([[thresholds(m.task.spec)[i] for i in _order(m, spec)] for m in members])
        values = {"thresholds": tuple(limits.double().mean(0).tolist())}
        return with_values(spec, values), ["thresholds of the labels: the mean of the members'"]
    if kind == "numbers":
        return spec, []
    of_probabilities = losses.get(first.recipe.loss.name).meta.get("probabilities", True)
    needs_mark = kind == "classes" and not of_probabilities  # scores, of which each member's temperature makes some
    values = {TEMPERATURE: (1.0,) * count} if needs_mark else {}
    found = sum(TEMPERATURE in output_values(m.task.spec) for m in members)
    notes = [f"{found} of {len(members)} members are calibrated and stay so"] if found else []
    kept = {k: v for k, v in output_values(spec).items() if k != TEMPERATURE}
    return with_values(spec, {**kept, **values}), notes


def _member(trained: TrainedModel, spec: Any, kind: str) -> dict[str, Any]:
    """The entry of ``model.members``: see :class:`bigmodel_cli.models.ensemble.Member`."""
    own = trained.task.spec
    order = _order(trained, spec)
    found: dict[str, Any] = {"model": _section(trained)}
    found["order"] = order if order != list(range(len(order))) else []
    if isinstance(own, ImageSpec) and (own.mean, own.std) != (spec.mean, spec.std):
        found["input_scale"], found["input_shift"] = _renormalised(spec, own)
    if kind == "numbers":
        found["output_scale"], found["output_shift"] = _rescaled(spec, own, order)
    elif kind == "classes" and temperature(own) != 1:
        count = len(order)
        found["output_scale"], found["output_shift"] = [1 / temperature(own)] * count, [0.0] * count
    return found


def _order(trained: TrainedModel, spec: Any) -> list[int]:
    """The place among the member's classes of each class of `spec`."""
    places = {name: i for i, name in enumerate(trained.task.spec.classes)}
    return [places[name] for name in spec.classes]


def _renormalised(spec: ImageSpec, own: ImageSpec) -> Pair:
    """Of an image normalised by `spec`, to get it normalised by `own`, per channel."""
    plain = ((0.0,) * spec.channels, (1 / 255,) * spec.channels)  # without a mean, pixels are left at 0..255
    mean, std = (spec.mean, spec.std) if spec.mean else plain
    own_mean, own_std = (own.mean, own.std) if own.mean else plain
    scales = [s / t for s, t in zip(std, own_std, strict=True)]
    return scales, [(m - n) / t for m, n, t in zip(mean, own_mean, own_std, strict=True)]


def _rescaled(spec: Any, own: Any, order: Sequence[int]) -> Pair:
    """Of outputs standardised by `own`, to get them standardised by `spec`; nothing where they agree."""
    (mean, std), (own_mean, own_std) = scale(spec), scale(own)
    scales = [own_std[j] / std[i] for i, j in enumerate(order)]
    shifts = [(own_mean[j] - mean[i]) / std[i] for i, j in enumerate(order)]
    return (scales, shifts) if scales != [1.0] * len(order) or any(shifts) else ([], [])


def _section(trained: TrainedModel) -> dict[str, Any]:
    """The part of the recipe that the architecture is built from."""
    section = trained.recipe.to_dict()["model"]
    altering = [key for key, usual in (("pruned", None), ("batchnorm", "own")) if section[key] != usual]
    return {key: section[key] for key in ("name", *trained.recipe.model.options, *altering)}


def _meta(members: Sequence[TrainedModel], section: Mapping[str, Any] | None) -> dict[str, Any]:
    """The metadata of the first member, with `section` as the model, or its own; it is of no fold and no start."""
    first = members[0]
    recipe = first.recipe.to_dict()
    kept = {k: recipe["model"][k] for k in ("init", "image_size")}
    recipe["model"] = {**kept, "pruned": None, "batchnorm": "own", **section} if section else recipe["model"]
    recipe["privacy"] = PrivacySection().model_dump(mode="json")  # what several runs spend adds up: none is claimed
    recipe["start"] = StartSection().model_dump(mode="json")
    for about in (data := dict(first.meta["data"]), recipe["data"]):
        about.update(folds=None, hold_out=None)
    made_of = [{"file": m.path.parent.name + "/" + m.path.name, "model": m.recipe.model.name} for m in members]
    changed = {"data": data, "recipe": recipe, "members": made_of}
    if section is not None:
        changed |= {"arch": section["name"], "arch_args": {k: v for k, v in section.items() if k != "name"}}
    return {**{k: v for k, v in first.meta.items() if k not in ("new", "privacy")}, **changed}


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    """The mean of floating-point tensors, the first of others, such as counters."""
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([t.double() for t in tensors]).mean(0).to(tensors[0].dtype)
