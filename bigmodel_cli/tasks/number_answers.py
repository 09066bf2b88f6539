"""Answers that are numbers: outputs that are standardised, in the units of the data. Shapes as in :mod:`answers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.registry import answers
from bigmodel_cli.tasks.answers import SCALE_TOLERANCE, Answer, scale

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from bigmodel_cli.core.specs import Spec
    from bigmodel_cli.core.tasks import Predictions

NUMBERS_SCRIPT = """
values = logits[0] * np.array(steps["outputs"]["std"]) + np.array(steps["outputs"]["mean"])
for value, label in zip(values, labels):
    show(f"{value:.7g}", label)
"""


class NumberAnswer(Answer):
    """Numbers: the outputs, which are standardised, in the units of the data."""

    noun = "numbers"
    limit = "It gives numbers for any input, also for one unlike its training data, where they mean nothing."
    columns = ("values",)
    script = NUMBERS_SCRIPT

    def tolerance(self, spec: Spec) -> Sequence[float]:
        return tuple(SCALE_TOLERANCE * s for s in scale(spec)[1])

    def values(self, logits: np.ndarray, spec: Spec) -> np.ndarray:
        import numpy as np

        mean, std = scale(spec)
        return np.asarray(logits * np.array(std) + np.array(mean))

    def choose(self, values: np.ndarray, spec: Spec, top: int) -> Predictions:
        return list(zip(spec.classes, values.tolist(), strict=True))

    def to_json(self, chosen: Predictions, spec: Spec) -> dict[str, Any]:
        return {"values": dict(chosen)}

    def to_row(self, chosen: Predictions, spec: Spec) -> tuple[str, ...]:
        return (", ".join(f"{name} {value:.5g}" for name, value in chosen),)

    def to_cells(self, chosen: Predictions, spec: Spec) -> dict[str, str | float]:
        return dict(chosen)

    def equal(self, ours: Tensor, theirs: Tensor, spec: Spec) -> Tensor:
        return ((ours - theirs).abs() <= SCALE_TOLERANCE).all(-1)

    def explained(self, logits: Tensor, spec: Spec) -> Tensor:
        mean, std = (logits.new_tensor(values, dtype=logits.float().dtype) for values in scale(spec))
        return logits.float() * std + mean

    def shown(self, score: float) -> tuple[str, float, str]:
        return "value", score, f"{score:.5g}"


@answers.register("numbers")
def number_answer() -> Answer:
    """One or several numbers."""
    return NumberAnswer()
