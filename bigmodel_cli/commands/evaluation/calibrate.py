"""``eval --calibrate``: a temperature fitted on the validation split, kept in the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.evaluation.trust import Extra, require_classes
from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bigmodel_cli.commands.evaluation.measuring import SplitOfData


def fit(measured: SplitOfData, batch_size: int, tta: bool) -> float:
    """The temperature for the model's val split; `measured` then has a task with it.

    Raises:
        InputError: its answers are not classes, it is not a checkpoint, the data is not what it was trained on, or
            all of val is right.
    """
    from bigmodel_cli.core.output_values import TEMPERATURE, uncalibrated, with_values
    from bigmodel_cli.core.types import Spec
    from bigmodel_cli.engine.build.data import is_same_data
    from bigmodel_cli.export.folder import is_export
    from bigmodel_cli.insight.trust.temperature import LOWEST, fit_temperature

    trained, task = measured.trained, measured.task
    require_classes(task, "--calibrate")
    if is_export(trained.path) or not trained.path.is_file():
        hint = "calibrate the checkpoint, then export it again"
        raise InputError(f"--calibrate: {trained.path} is not a checkpoint file", "expected one to keep it in", hint)
    if not is_same_data(trained.meta.get("data") or {}, measured.recipe.data):
        what = f"--calibrate on {measured.recipe.data.name}, which the model was not trained on"
        raise InputError(what, "expected its own validation split", "leave out --data")
    plain: Spec = uncalibrated(task.spec)
    val = measured.other("val")
    val.task = task.with_(spec=plain)
    out = val.outputs(batch_size, tta)
    known = out["label"] >= 0
    temperature = fit_temperature(out["logits"][known].float(), out["label"][known])
    if temperature == LOWEST:  # the lower the better, down to 0
        what = f"--calibrate: all {int(known.sum()):,} samples of val are right"
        hint = "a larger val split, from the start: bigmodel train ... --set data.val_fraction=0.3"
        raise InputError(what, "expected mistakes: without any, each answer would be called certain", hint)
    fitted = with_values(plain, {TEMPERATURE: (temperature,) * len(plain.classes)})
    measured.task = task.with_(spec=fitted)
    return temperature


def keep(measured: SplitOfData) -> None:
    """Write the fitted temperature into the checkpoint, whose weights stay as they are."""
    from bigmodel_cli.engine.checkpoint import checkpoint

    path, spec = measured.trained.path, measured.task.spec
    state = checkpoint.load(path)
    state["meta"]["input"] = {"kind": spec.kind, **spec.to_dict()}
    checkpoint.save(path, state)


def before_and_after(measured: SplitOfData, outputs: Mapping[str, Tensor], temperature: float) -> Extra:
    """ECE and negative log-likelihood of the measured split without and with the temperature."""
    from bigmodel_cli.insight.trust.temperature import negative_log_likelihood
    from bigmodel_cli.metrics.intervals import measure

    known = outputs["label"] >= 0
    logits, labels = outputs["logits"][known], outputs["label"][known]
    values: dict[str, Any] = {"temperature": temperature, "split": measured.name}
    rows: list[tuple[str, ...]] = []
    for name, z in (("before", logits * temperature), ("after", logits)):
        ece = measure(["ece"], {"logits": z, "label": labels})["ece"]
        values[name] = {"ece": ece.to_dict(), "negative_log_likelihood": negative_log_likelihood(z, labels)}
        nll = values[name]["negative_log_likelihood"]
        rows.append((name, f"{ece.value:.4f} ({ece.low:.4f} .. {ece.high:.4f})", f"{nll:.4f}"))
    where = measured.says + (", on which it was fitted" if measured.name == "val" else "")
    title = f"temperature {temperature:.4g}, {where}"
    note = f"temperature {temperature:.4g} fitted on val and kept in {measured.trained.path}; exports of it have it too"
    table = (title, ("", "ECE", "negative log-likelihood"), rows, True)
    return Extra("calibration", values, [table], [note])
