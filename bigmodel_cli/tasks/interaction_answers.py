"""What the outputs of models of interactions mean: a score of every item, or one rating. Shapes: B batch, I items.

Nothing here imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.interactions import InteractionSpec
from bigmodel_cli.core.registry import answers
from bigmodel_cli.tasks.answers import Answer

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from bigmodel_cli.core.specs import Spec
    from bigmodel_cli.core.tasks import Predictions

RATING_TOLERANCE = 1e-2
"""Ratings that differ by less are the same answer."""
ITEMS_SCRIPT = """
for i in (-scores).argsort(kind="stable")[:10]:
    if scores[i] > -np.inf:
        show(f"{scores[i]:.7g}", labels[i])
"""
RATING_SCRIPT = """
show(f"{min(max(float(np.ravel(logits)[0]), steps['range'][0]), steps['range'][1]):.7g}", labels[item])
"""


class ItemAnswer(Answer):
    """Items of the catalogue, best first; those scored -inf are no answer."""

    noun = "items"
    limit = "It ranks the items of its catalogue: a new one has to be learnt first (`bigmodel finetune`)."
    columns = ("item", "title", "score")
    script = ITEMS_SCRIPT

    def values(self, logits: np.ndarray, spec: Spec) -> np.ndarray:
        return logits

    def choose(self, values: np.ndarray, spec: Spec, top: int) -> Predictions:
        assert isinstance(spec, InteractionSpec)
        best = (-values).argsort(kind="stable")[:top].tolist()
        return [(spec.item_id(i), float(values[i])) for i in best if values[i] > float("-inf")]

    def to_json(self, chosen: Predictions, spec: Spec) -> dict[str, Any]:
        assert isinstance(spec, InteractionSpec)
        titles = [spec.title(spec.item_index(name)) for name, _ in chosen]
        return {"top": [{"item": n, "title": t, "score": s} for (n, s), t in zip(chosen, titles, strict=True)]}

    def to_row(self, chosen: Predictions, spec: Spec) -> tuple[str, ...]:
        assert isinstance(spec, InteractionSpec)
        name, score = chosen[0]
        return name, spec.title(spec.item_index(name)), f"{score:.4f}"

    def equal(self, ours: Tensor, theirs: Tensor, spec: Spec) -> Tensor:
        return ours.argmax(-1) == theirs.argmax(-1)

    def explained(self, logits: Tensor, spec: Spec) -> Tensor:
        return logits.float()

    def shown(self, score: float) -> tuple[str, float, str]:
        return "score", score, f"{score:.4f}"


class RatingAnswer(Answer):
    """One rating, (B,), within the range of the data."""

    noun = "ratings"
    limit = "It rates the users and items that it was trained on; one without a rating gets little more than the mean."
    columns = ("rating",)
    script = RATING_SCRIPT

    def values(self, logits: np.ndarray, spec: Spec) -> np.ndarray:
        assert isinstance(spec, InteractionSpec)
        return logits.reshape(len(logits), -1).clip(spec.low, spec.high)

    def choose(self, values: np.ndarray, spec: Spec, top: int) -> Predictions:
        return [("rating", float(values[0]))]

    def to_json(self, chosen: Predictions, spec: Spec) -> dict[str, Any]:
        return {"rating": chosen[0][1]}

    def to_row(self, chosen: Predictions, spec: Spec) -> tuple[str, ...]:
        return (f"{chosen[0][1]:.4f}",)

    def equal(self, ours: Tensor, theirs: Tensor, spec: Spec) -> Tensor:
        return (ours - theirs).abs() <= RATING_TOLERANCE

    def explained(self, logits: Tensor, spec: Spec) -> Tensor:
        return logits.float()[:, None]

    def shown(self, score: float) -> tuple[str, float, str]:
        return "rating", score, f"{score:.4f}"


@answers.register("items")
def item_answer() -> Answer:
    """Items of a catalogue, best first."""
    return ItemAnswer()


@answers.register("rating")
def rating_answer() -> Answer:
    """A rating of an item by a user."""
    return RatingAnswer()
