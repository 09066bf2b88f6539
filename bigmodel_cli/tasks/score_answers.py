"""Classes by scores that are not probabilities, as of squared errors. Shapes: B batch, K outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.registry import answers
from bigmodel_cli.tasks.answers import SCALE_TOLERANCE, Answer, ClassAnswer

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from bigmodel_cli.core.specs import Spec
    from bigmodel_cli.core.tasks import Predictions

SCORES_SCRIPT = """
for k in logits[0].argsort()[::-1][:5]:  # scores and not probabilities: the model was trained on another loss
    show(f"{logits[0][k]:.7g}", labels[k])
"""


class ScoreAnswer(ClassAnswer):
    """One class: the largest output. The outputs are scores, which are never told as probabilities."""

    limit = "It knows only its classes: any other input also gets one of them. Its scores are not probabilities."
    columns = ("prediction", "score", "runners-up")
    value = "score"
    script = SCORES_SCRIPT

    def tolerance(self, spec: Spec) -> Sequence[float]:
        return (SCALE_TOLERANCE,) * len(spec.classes)

    def values(self, logits: np.ndarray, spec: Spec) -> np.ndarray:
        return logits

    def to_json(self, chosen: Predictions, spec: Spec) -> dict[str, Any]:
        top = [{"class": name, "score": value} for name, value in chosen]
        return {**top[0], "top": top}

    def to_row(self, chosen: Predictions, spec: Spec) -> tuple[str, ...]:
        others = ", ".join(f"{name} {value:.4g}" for name, value in chosen[1:])
        return chosen[0][0], f"{chosen[0][1]:.4g}", others

    def explained(self, logits: Tensor, spec: Spec) -> Tensor:
        return logits.float()

    def shown(self, score: float) -> tuple[str, float, str]:
        return "score", score, f"score {score:.4g}"


@answers.register("scores")
def score_answer() -> Answer:
    """One class of several, by scores that are not probabilities."""
    return ScoreAnswer()
