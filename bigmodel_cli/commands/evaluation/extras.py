"""Everything that ``eval`` was asked to measure beside its report."""

from __future__ import annotations

from pathlib import Path

from bigmodel_cli.commands.evaluation.membership import membership
from bigmodel_cli.commands.evaluation.slices import slices
from bigmodel_cli.commands.evaluation.trust import Evaluation, Extra, TrustOptions, conformal, corrupted, foreign


def measure_trust(options: TrustOptions, found: Evaluation, data_dir: Path | None) -> list[Extra]:
    """Everything that `options` ask for, in the order of the flags."""
    extras = []
    if options.conformal is not None:
        extras.append(conformal(found, options.conformal))
    if options.corruptions:
        extras.append(corrupted(found))
    if options.ood is not None:
        extras.append(foreign(found, options.ood, data_dir))
    if options.by is not None:
        extras.append(slices(found, options.by))
    if options.membership is not None:
        extras.append(membership(found, options.membership))
    return extras
