"""Answers of models that write texts: the outputs are those of tokens, and what is shown is a whole text.

Nothing here imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.registry import answers
from bigmodel_cli.tasks.answers import Answer, ClassAnswer

if TYPE_CHECKING:
    from bigmodel_cli.core.specs import Spec
    from bigmodel_cli.core.tasks import Predictions


class TextAnswer(ClassAnswer):
    """One text, with the geometric mean of its tokens' probabilities. An output is one of the next token."""

    noun = "tokens"
    limit = "It writes something for any input, also for one unlike its training data, and what it writes may be wrong."
    columns = ("prediction", "probability")

    def to_json(self, chosen: Predictions, spec: Spec) -> dict[str, Any]:
        text, probability = chosen[0]
        return {"text": text, "probability": probability}

    def to_row(self, chosen: Predictions, spec: Spec) -> tuple[str, ...]:
        return chosen[0][0], f"{chosen[0][1]:.2%}"

    def to_cells(self, chosen: Predictions, spec: Spec) -> dict[str, str | float]:
        return {"prediction": chosen[0][0], "probability": chosen[0][1]}


@answers.register("texts")
def text_answer() -> Answer:
    """A text."""
    return TextAnswer()
