"""``eval --membership``: what the model gives away of who was in its training data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.evaluation.trust import Evaluation, Extra, require_classes
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files import drafts

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.insight.trust.membership import Attack

LEAST = 4
"""The fewest shadow models: half of them train on a sample, and one alone has no spread."""
SEED = 0


def membership(found: Evaluation, shadows: int) -> Extra:
    """LiRA with `shadows` shadow models, whose outputs are kept beside the checkpoint.

    Raises:
        InputError: the answers are not classes, or the shadow models could not be trained as the model was.
    """
    from bigmodel_cli.core.processes.cpu_count import available_cores
    from bigmodel_cli.engine.checkpoint import checkpoint
    from bigmodel_cli.engine.experiments.shadow_models import audited_samples, shadow_outputs
    from bigmodel_cli.insight.trust.membership import confidence, likelihood_ratio, measure_attack

    measured = found.measured
    _check(found, shadows)
    recipe = measured.trained.recipe
    recipe = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"dir": measured.recipe.data.dir}),
                "placement": measured.recipe.placement}
    )  # fmt: skip
    train = measured.other("train")
    epoch = int(checkpoint.load(measured.trained.path)["progress"]["epoch"])
    audited = audited_samples(train.source, measured.source, measured.name, epoch, SEED)
    own, labels = _target(found, train, audited)
    logits, _, inside = shadow_outputs(
        recipe, audited, measured.bundle.fingerprint, folder_of(measured.trained.path), shadows, SEED,
        min(available_cores(), shadows), lambda n: console.note(f"shadow models: {n} of {shadows}"),
    )  # fmt: skip
    target = confidence(own, labels)
    shadow = confidence(logits.flatten(0, 1), labels.repeat(len(logits))).reshape(logits.shape[:2])
    scores = {
        f"LiRA, {shadows} shadow models": likelihood_ratio(target, shadow, inside),
        "confidence alone": target,
    }
    member = audited.is_member
    attacks = {name: measure_attack(score[member], score[~member]) for name, score in scores.items()}
    return _told(attacks, audited, measured.trained.meta.get("privacy"), shadows)


def folder_of(checkpoint: Path) -> Path:
    """Where the shadow models of a checkpoint are kept.

    Raises:
        InputError: a link lies there, which would lead them elsewhere.
    """
    drafts.require_no_link(folder := checkpoint.parent / "membership")
    return folder


def _check(found: Evaluation, shadows: int) -> None:
    from bigmodel_cli.engine.build.data import is_same_data
    from bigmodel_cli.export.folder import is_export

    measured = found.measured
    require_classes(measured.task, "--membership")
    if is_export(measured.trained.path) or not measured.trained.path.is_file():
        raise InputError(f"--membership: {measured.trained.path} is not a checkpoint", "expected one with its recipe")
    if not is_same_data(measured.trained.meta.get("data") or {}, measured.recipe.data):
        raise InputError(f"--membership on {measured.recipe.data.name}", "expected the data the model was trained on")
    if measured.name not in ("val", "test"):
        raise InputError(
            f"--membership with --split {measured.name}", "expected samples it was not trained on: val, test"
        )
    if measured.trained.recipe.train.balance == "sampling":
        raise InputError(
            "--membership of a model with train.balance = sampling", "expected samples drawn equally often"
        )
    if shadows < LEAST:
        raise InputError(f"--shadows {shadows}", f"expected at least {LEAST}")


def _target(found: Evaluation, train: Any, audited: Any) -> tuple[Tensor, Tensor]:
    """The audited model's logits (P,K) for the audited samples, and their labels (P,)."""
    import torch

    from bigmodel_cli.data.subset import Subset

    parts = []
    for split, indices in ((train, audited.members), (found.measured, audited.others)):
        out = split.on(Subset(split.source, indices)).outputs(found.batch_size, False)
        order = out["index"].argsort()
        parts.append((out["logits"][order].float(), out["label"][order]))
    logits, labels = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    return logits, labels


def _told(attacks: dict[str, Attack], audited: Any, privacy: Any, shadows: int) -> Extra:
    from bigmodel_cli.insight.trust.membership import RATES, private_bound

    rows: list[tuple[str, ...]] = []
    for name, attack in attacks.items():
        figures = [f"{attack.auc[0]:.3f} ({attack.auc[1]:.3f} .. {attack.auc[2]:.3f})"]
        for rate in RATES:
            at = attack.tpr[rate]
            figures.append("-" if at is None else f"{at[0]:.2%} ({at[1]:.2%} .. {at[2]:.2%})")
        rows.append((name, *figures))
    count = len(audited.members)
    values: dict[str, Any] = {
        "members": count, "others": len(audited.others), "split": audited.split, "shadow_models": shadows,
        "attacks": dict(zip(("lira", "confidence"), (a.to_dict() for a in attacks.values()), strict=True)),
    }  # fmt: skip
    notes = [f"membership: {count:,} samples of train and as many of {audited.split}; chance is TPR = FPR, AUC 0.5"]
    if privacy:
        bounds = {rate: private_bound(privacy["epsilon"], privacy["delta"], rate) for rate in RATES}
        values["bound"] = {f"tpr_at_{rate:g}_fpr": bound for rate, bound in bounds.items()}
        told = ", ".join(f"{bound:.1%} at {rate:.1%}" for rate, bound in bounds.items())
        notes.append(f"trained privately (epsilon {privacy['epsilon']:g}): no attack has a higher TPR than {told} FPR")
    missing = [f"{rate:.1%}" for rate in RATES if rate * len(audited.others) < 1]
    if missing:
        notes.append(f"{len(audited.others):,} samples are too few for an FPR of {' and '.join(missing)}")
    columns = ("attack", "AUC", *(f"TPR at {rate:.1%} FPR" for rate in RATES))
    return Extra("membership", values, [("who was in the training data", columns, rows, True)], notes)
