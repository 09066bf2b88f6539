"""What the K numbers of a model mean: a class, labels that hold or not, or numbers. A task names its kind of answer.

Everything that shows answers goes through here: ``predict``, ``explain``, ``serve`` and the exports' ``example.py``.
Nothing here imports torch. Shapes: B batch, K outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from bigmodel_cli.core.answering import NamesAnswer
from bigmodel_cli.core.output_values import SCORES, TEMPERATURE, output_values
from bigmodel_cli.core.registry import answers

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from bigmodel_cli.core.specs import Spec
    from bigmodel_cli.core.tasks import Predictions

PROBABILITY_TOLERANCE, SCALE_TOLERANCE = 1e-3, 1e-2
"""Of a probability, and of a number in standard deviations."""
HALF = 0.5
"""The threshold of a label before one is chosen on val."""


class Answer(ABC):
    """How outputs (B,K) become answers. `spec` has the names of the outputs and the values that it takes."""

    noun: ClassVar[str]
    """What the K outputs are called."""
    limit: ClassVar[str]
    """What a model card says on inputs that are unlike those of training."""
    columns: ClassVar[Sequence[str]]
    """The columns of a table of answers."""
    script: ClassVar[str]
    """The end of ``example.py``: ``logits`` (1,K), ``labels`` and ``steps`` become lines ``NUMBER  NAME``, by ``show``.
    A probability is in percent."""

    def tolerance(self, spec: Spec) -> Sequence[float]:
        """(K,) how far a value of ``example.py`` may be off, since it prepares inputs without torch."""
        return (PROBABILITY_TOLERANCE,) * len(spec.classes)

    @abstractmethod
    def values(self, logits: np.ndarray, spec: Spec) -> np.ndarray:
        """(B,K): probabilities, or numbers in the units of the data."""

    @abstractmethod
    def choose(self, values: np.ndarray, spec: Spec, top: int) -> Predictions:
        """The answer for one sample from its values (K,); `top` is the most alternatives to show."""

    @abstractmethod
    def to_json(self, chosen: Predictions, spec: Spec) -> dict[str, Any]:
        """The answer as ``predict --json`` and ``serve`` give it."""

    @abstractmethod
    def to_row(self, chosen: Predictions, spec: Spec) -> tuple[str, ...]:
        """The answer in a table with `columns`."""

    def to_cells(self, chosen: Predictions, spec: Spec) -> dict[str, str | float]:
        """The answer in a row of ``predict --out``, by column: what was chosen, then the values in `chosen`."""
        return {key: value for key, value in self.to_json(chosen, spec).items() if isinstance(value, (str, float))}

    @abstractmethod
    def equal(self, ours: Tensor, theirs: Tensor, spec: Spec) -> Tensor:
        """Whether two outputs (B,...,K) of the same inputs are the same answer, (B,...) bool."""

    @abstractmethod
    def explained(self, logits: Tensor, spec: Spec) -> Tensor:
        """(B,K) the score of each output that ``explain`` attributes to the input."""

    @abstractmethod
    def shown(self, score: float) -> tuple[str, float, str]:
        """The name, the value and the text of what such a score stands for."""


SHOW = """
def show(number, name):
    print(number, "".join(c if c.isprintable() else repr(c)[1:-1] for c in name), sep="  ")


"""
CLASSES_SCRIPT = """
logits = logits / steps.get("outputs", {}).get("temperature", [1.0])[0]  # fitted on val by eval --calibrate
probability = np.exp(logits[0] - logits[0].max())
probability /= probability.sum()
for k in probability.argsort()[::-1][:5]:
    show(f"{probability[k]:8.4%}", labels[k])
"""
LABELS_SCRIPT = """
probability = 1 / (1 + np.exp(-np.asarray(logits[0], np.float64)))
thresholds = steps["outputs"]["thresholds"] if "outputs" in steps else [0.5] * len(labels)
held = [k for k in range(len(labels)) if probability[k] >= thresholds[k]]  # the labels that the model assigns
for k in held or [int(probability.argmax())]:  # if there is none, the most likely one
    show(f"{probability[k]:8.4%}", labels[k])
"""


class ClassAnswer(Answer):
    """One class: the softmax of the outputs, divided by the temperature if one was fitted."""

    noun = "classes"
    limit = "It knows only its classes: any other input also gets one of them, possibly with high confidence."
    columns: ClassVar[Sequence[str]] = ("prediction", "probability", "runners-up")
    value: ClassVar[str] = "probability"
    """What the value of a class is called."""
    script = CLASSES_SCRIPT

    def values(self, logits: np.ndarray, spec: Spec) -> np.ndarray:
        import numpy as np

        logits = logits / temperature(spec)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(odds / odds.sum(1, keepdims=True))

    def choose(self, values: np.ndarray, spec: Spec, top: int) -> Predictions:
        return _ranked(values, spec, top)

    def to_json(self, chosen: Predictions, spec: Spec) -> dict[str, Any]:
        top = [{"class": name, "probability": p} for name, p in chosen]
        return {**top[0], "top": top}

    def to_row(self, chosen: Predictions, spec: Spec) -> tuple[str, ...]:
        others = ", ".join(f"{name} {p:.2%}" for name, p in chosen[1:])
        return chosen[0][0], f"{chosen[0][1]:.2%}", others

    def to_cells(self, chosen: Predictions, spec: Spec) -> dict[str, str | float]:
        return {"prediction": chosen[0][0], **_by_class(self.value, chosen, spec)}

    def equal(self, ours: Tensor, theirs: Tensor, spec: Spec) -> Tensor:
        return ours.argmax(-1) == theirs.argmax(-1)

    def explained(self, logits: Tensor, spec: Spec) -> Tensor:
        return (logits.float() / temperature(spec)).log_softmax(1)

    def shown(self, score: float) -> tuple[str, float, str]:
        return _probability(score)


class LabelAnswer(Answer):
    """Any number of labels: the sigmoid of each output, against its threshold."""

    noun = "labels"
    limit = "It knows only its labels: what none of them describes gets none, or some that do not fit."
    columns = ("labels", "others")
    script = LABELS_SCRIPT

    def values(self, logits: np.ndarray, spec: Spec) -> np.ndarray:
        import numpy as np

        return np.asarray(1 / (1 + np.exp(-np.clip(logits, -500, 500))))

    def choose(self, values: np.ndarray, spec: Spec, top: int) -> Predictions:
        held = sum(p >= t for p, t in zip(values.tolist(), thresholds(spec), strict=True))
        limits = dict(zip(spec.classes, thresholds(spec), strict=True))
        ranked = _ranked(values, spec, len(values))
        first = [pair for pair in ranked if pair[1] >= limits[pair[0]]]
        return first + [pair for pair in ranked if pair[1] < limits[pair[0]]][: max(0, top - held)]

    def to_json(self, chosen: Predictions, spec: Spec) -> dict[str, Any]:
        held = self._held(chosen, spec)
        return {"labels": held, "top": [{"class": name, "probability": p} for name, p in chosen]}

    def to_row(self, chosen: Predictions, spec: Spec) -> tuple[str, ...]:
        held = self._held(chosen, spec)
        mine = ", ".join(f"{name} {p:.2%}" for name, p in chosen if name in held)
        return mine or "-", ", ".join(f"{name} {p:.2%}" for name, p in chosen if name not in held)

    def to_cells(self, chosen: Predictions, spec: Spec) -> dict[str, str | float]:
        held = self._held(chosen, spec)
        ordered = "|".join(name for name in spec.classes if name in held)
        return {"prediction": ordered, **_by_class("probability", chosen, spec)}

    def _held(self, chosen: Predictions, spec: Spec) -> list[str]:
        limits = dict(zip(spec.classes, thresholds(spec), strict=True))
        return [name for name, p in chosen if p >= limits[name]]

    def equal(self, ours: Tensor, theirs: Tensor, spec: Spec) -> Tensor:
        limits = ours.new_tensor(thresholds(spec))
        return ((ours.sigmoid() >= limits) == (theirs.sigmoid() >= limits)).all(-1)

    def explained(self, logits: Tensor, spec: Spec) -> Tensor:
        from torch.nn.functional import logsigmoid

        return logsigmoid(logits.float())

    def shown(self, score: float) -> tuple[str, float, str]:
        return _probability(score)


def answer_of(task: Any) -> Answer:
    """The kind of answer of `task`."""
    return answer_kind(task.answers if isinstance(task, NamesAnswer) else default_answer(task.spec), task.spec)


def default_answer(spec: Any) -> str:
    """The registered kind of answer of a task that names none: one of its classes, or a text where there are none."""
    return "classes" if spec.classes else "texts"


def answer_kind(name: str, spec: Any) -> Answer:
    """The kind of answer called `name` in a task; of class outputs that are no probabilities, scores."""
    return answers.get(answer_name(name, spec))()  # type: ignore[no-any-return]


def answer_name(name: str, spec: Any) -> str:
    """The registered kind of answer of a task whose own is `name`: ``scores`` of classes without probabilities."""
    return "scores" if name == "classes" and SCORES in output_values(spec) else name


def gives_probabilities(task: Any) -> bool:
    """Whether the outputs of `task`, which has classes, are the logits of probabilities."""
    return SCORES not in output_values(task.spec)


@answers.register("classes")
def class_answer() -> Answer:
    """One class of several."""
    return ClassAnswer()


@answers.register("labels")
def label_answer() -> Answer:
    """Any number of labels."""
    return LabelAnswer()


def outputs_described(spec: Any) -> dict[str, Any]:
    """The output values as a step of an export's preprocessing; empty where there are none."""
    found = {name: list(values) for name, values in output_values(spec).items()}
    return {"outputs": found} if found else {}


def temperature(spec: Any) -> float:
    """What class logits are divided by before the softmax: 1 where none was fitted."""
    return float(output_values(spec).get(TEMPERATURE, (1.0,))[0])


def thresholds(spec: Spec) -> tuple[float, ...]:
    """(K,) the probability from which a label holds."""
    return output_values(spec).get("thresholds", (HALF,) * len(spec.classes))


def scale(spec: Spec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(K,) the mean and the standard deviation of each target on the train split."""
    found, count = output_values(spec), len(spec.classes)
    return found.get("mean", (0.0,) * count), found.get("std", (1.0,) * count)


def _ranked(values: np.ndarray, spec: Spec, top: int) -> Predictions:
    best = (-values).argsort(kind="stable")[:top]
    return [(spec.classes[i], float(values[i])) for i in best]


def _by_class(word: str, chosen: Predictions, spec: Spec) -> dict[str, str | float]:
    """The value of each class of the model that is in `chosen`, under a column ``WORD CLASS``, in the model's order."""
    values = dict(chosen)
    return {f"{word} {name}": values[name] for name in spec.classes if name in values}


def _probability(score: float) -> tuple[str, float, str]:
    import math

    return "probability", math.exp(score), f"{math.exp(score):.2%}"
