"""What ``eval`` measures beside a report: calibration, conformal sets, corruptions, foreign data and slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.commands.evaluation.measuring import SplitOfData
    from bigmodel_cli.core.types import Source
    from bigmodel_cli.insight.reports import Table

MOST_CORRUPTED = 1000
"""The most samples that each corruption is measured on."""
MOST_FOREIGN = 10_000
"""The most samples of other data."""
MOST_SLICES = 40
"""The most slices in a table; all are in --json."""


@dataclass(frozen=True)
class TrustOptions:
    """The flags of ``eval`` that measure trust."""

    calibrate: bool = False
    conformal: float | None = None
    corruptions: bool = False
    ood: str | None = None
    by: str | None = None
    membership: int | None = None
    """The number of shadow models."""


@dataclass(frozen=True)
class Extra:
    """What one of them found: values for ``--json`` under `key`, a table, and lines to read with it."""

    key: str
    values: Any
    tables: Sequence[Table]
    notes: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Evaluation:
    """A split that was measured, with its outputs and how to measure others."""

    measured: SplitOfData
    outputs: Mapping[str, Tensor]
    batch_size: int
    tta: bool

    def of(self, split: SplitOfData) -> dict[str, Tensor]:
        return split.outputs(self.batch_size, self.tta)

    def known(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N,K) and labels (N,) of the samples of known classes."""
        known = outputs["label"] >= 0
        return outputs["logits"][known].float(), outputs["label"][known]


def require_classes(task: Any, flag: str) -> None:
    """Check that the answers of `task` are classes.

    Raises:
        InputError: they are not.
    """
    from bigmodel_cli.core.tasks import Classifies

    if not isinstance(task, Classifies):
        raise InputError(f"{flag}: {task.name.replace('_', ' ')}", "expected a model with one class per sample")


def conformal(found: Evaluation, level: float) -> Extra:
    """Sets of classes that hold the true one in `level` of the samples, calibrated on val.

    Where val itself is measured, or the data has none, half of the samples calibrates.
    """
    import torch

    from bigmodel_cli.insight.trust.conformal import conformal_sets

    measured = found.measured
    require_classes(measured.task, "--conformal")
    if not 0 < level < 1:
        raise InputError(f"--conformal {level:g}", "expected the share of samples to cover, such as 0.9")
    logits, labels = found.known(found.outputs)
    if measured.name in ("val", "all") or not {"train", "val"} & measured.bundle.load.keys():
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        half, rest = order.tensor_split(2)
        calibration, held = (logits[half], labels[half]), (logits[rest], labels[rest])
        how = f"half of {measured.says}, {len(half):,} samples, measured on the other {len(rest):,}"
    else:
        calibration, held = found.known(found.of(measured.other("val"))), (logits, labels)
        how = f"the val split, {len(calibration[1]):,} samples"
    sets = conformal_sets(calibration, held, level)
    rows: list[tuple[str, ...]] = [
        (name.upper(), f"{s.coverage:.2%}", f"{s.mean_size:.3f}", f"{s.size_at_level:.3f}", f"{s.single:.2%}",
         f"{s.empty:.2%}",
         "-" if s.worst_class is None else f"{s.worst_class:.2%}")
        for name, s in sets.items()
    ]  # fmt: skip
    title = f"sets of classes for {level:.4g} of the samples"
    columns = ("score", "covered", "mean size", f"size at {level:.4g}", "one class", "empty", "worst class covered")
    values = {"level": level, "calibrated_on": how, "scores": {name: s.to_dict() for name, s in sets.items()}}
    return Extra("conformal", values, [(title, columns, rows, True)], [f"conformal sets are calibrated on {how}"])


def corrupted(found: Evaluation) -> Extra:
    """Accuracy under each corruption of images, at five severities."""
    import torch

    from bigmodel_cli.core.registry import corruptions
    from bigmodel_cli.data.image.corrupted import SEVERITIES, CorruptedImages
    from bigmodel_cli.data.subset import Subset
    from bigmodel_cli.insight.evaluated import evenly

    measured = found.measured
    require_classes(measured.task, "--corruptions")
    if measured.task.spec.kind != "image":
        raise InputError(f"--corruptions: data of kind {measured.task.spec.kind}", "expected a model of images")
    source, whole = measured.source, len(measured.source)
    if whole > MOST_CORRUPTED:
        source = Subset(source, torch.tensor(list(evenly(whole, MOST_CORRUPTED))))

    def accuracy(split: SplitOfData) -> float:
        logits, labels = found.known(found.of(split))
        return float((logits.argmax(1) == labels).double().mean())

    clean = accuracy(measured.on(source))
    names = [f.name for f in sorted(corruptions.found.values(), key=lambda f: f.meta["order"])]
    by_name = {
        name: [accuracy(measured.on(CorruptedImages(source, name, s))) for s in range(SEVERITIES)] for name in names
    }
    means = {name: sum(values) / len(values) for name, values in by_name.items()}
    mean = sum(means.values()) / len(means)
    rows: list[tuple[str, ...]] = [
        (n.replace("_", " "), f"{means[n]:.2%}", *(f"{v:.2%}" for v in by_name[n])) for n in names
    ]
    rows.append(("mean", f"{mean:.2%}", *(f"{sum(v[s] for v in by_name.values()) / len(names):.2%}" for s in range(5))))
    values = {"clean": clean, "mean": mean, "samples": len(source), "accuracy": by_name}
    part = f"{len(source):,} of the {whole:,} samples, evenly spaced" if len(source) < whole else "all samples"
    title = f"accuracy under corruptions, by severity; clean: {clean:.2%}"
    note = f"corruptions after Hendrycks and Dietterich 2019, made here, on {part}"
    return Extra("corruptions", values, [(title, ("", "mean", "1", "2", "3", "4", "5"), rows, True)], [note])


def foreign(found: Evaluation, name: str, data_dir: Path | None) -> Extra:
    """Whether confidence tells the measured samples from those of the data called `name`."""
    import torch

    from bigmodel_cli.commands.arguments.recipe_layers import Known, checkpoint_recipe, resolve_data_path
    from bigmodel_cli.commands.display.progress import WaitBars
    from bigmodel_cli.core.resolve import Layer
    from bigmodel_cli.data.subset import Subset
    from bigmodel_cli.engine.build.data import load_data, load_split
    from bigmodel_cli.insight.evaluated import evenly
    from bigmodel_cli.insight.trust.foreign_source import Unlabelled
    from bigmodel_cli.insight.trust.out_of_distribution import separation
    from bigmodel_cli.tasks.answers import gives_probabilities

    measured = found.measured
    require_classes(measured.task, "--ood")
    folder = {} if data_dir is None else {"dir": str(data_dir)}
    known = Known.of(measured.trained.recipe.to_dict()["data"])
    layer = Layer("--ood", {"data": {**(resolve_data_path(name, None, known) or {"name": name}), **folder}})
    recipe = checkpoint_recipe(measured.trained, [layer])
    with WaitBars():
        bundle = load_data(recipe.data, measured.trained.task.spec, recipe.task)
        if bundle.spec.kind != measured.task.spec.kind:
            raise InputError(f"--ood {name}: data of kind {bundle.spec.kind}", f"expected {measured.task.spec.kind}")
        split = next(s for s in ("test", "val", "train") if s in bundle.load)
        source: Source = Unlabelled(load_split(bundle, recipe.data, split))
    whole = len(source)
    if whole > MOST_FOREIGN:
        source = Subset(source, torch.tensor(list(evenly(whole, MOST_FOREIGN))))
    shared = sorted(set(bundle.spec.classes) & set(measured.task.spec.classes))
    other = measured.on(source)
    other.task = measured.task.with_(label_map=None)  # no class is matched: they are foreign
    probabilities = gives_probabilities(measured.task)
    values = separation(found.outputs["logits"], found.of(other)["logits"], probabilities)
    rows: list[tuple[str, ...]] = [
        (n.replace("_", " "), f"{v['auroc']:.4f}", f"{v['fpr95']:.2%}") for n, v in values.items()
    ]
    title = f"telling {measured.says} from {bundle_name(recipe.data.name, name)}, {split}"
    notes = [f"--ood {name}: it has classes of the model too: {', '.join(shared[:5])}"] if shared else []
    notes += [f"--ood {name}: {len(source):,} of its {whole:,} samples, evenly spaced"] if len(source) < whole else []
    columns = ("score", "AUROC", "FPR at 95% TPR")
    values_of = {"data": name, "split": split, "samples": len(source), "scores": values}
    return Extra("out_of_distribution", values_of, [(title, columns, rows, True)], notes)


def bundle_name(registered: str, given: str) -> str:
    return given if "/" not in given else f"{Path(given).name} ({registered})"
