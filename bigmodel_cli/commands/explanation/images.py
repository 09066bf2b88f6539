"""The part of ``bigmodel explain`` for images: maps by several methods, checked, on one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.commands.arguments.input_files import readable
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.pages import require_place
from bigmodel_cli.core.errors import InputError, MachineError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.core.registry import Entry
    from bigmodel_cli.core.types import Batch, Source
    from bigmodel_cli.engine.build.load import TrainedModel
    from bigmodel_cli.insight.explain.image_page import ExplainedImage, Map
    from bigmodel_cli.insight.explain.subject import Subject
    from bigmodel_cli.tasks.answers import Answer

DEFAULT_OUT = Path("explained")


@dataclass(frozen=True)
class ImageOptions:
    """How images are explained; `methods` empty: all that apply. `nearest`: how many training images to show."""

    target: str | None
    methods: Sequence[str]
    steps: int
    checks: bool
    nearest: int
    out: Path | None
    json: bool


def explain_images(trained: TrainedModel, files: list[Path], options: ImageOptions, errors: list[InputError]) -> None:
    """Explain the answer for each image in `files`; why one cannot be read is added to `errors`."""
    from bigmodel_cli.core.tasks import Predicts
    from bigmodel_cli.insight.explain.image_page import write_page

    task = trained.task
    if not isinstance(task, Predicts):
        raise InputError(f"{trained.path}: {task.name.replace('_', ' ')}", "expected a classifier of images")
    if not files and not errors:
        raise InputError("nothing to explain", "expected FILE", "bigmodel explain --help")
    out = options.out or DEFAULT_OUT
    is_page = out.suffix.lower() in (".html", ".htm")
    require_place(out if is_page else None)
    explainer = Explainer(trained, options)
    found: list[ExplainedImage] = []
    rows: list[tuple[str, ...]] = []
    for name, raw in readable(files, task.read_file, errors):
        image = explainer.explain(name, raw)
        path = None if is_page else _write_picture(out / f"{len(found):04}-{Path(name).stem}.png", image)
        found.append(image)
        rows += [(name, image.answer, m.method, *_checked(m)) for m in image.maps]
        if options.json:
            console.print_json({**image.values, "image": None if path is None else str(path)})
    if not found:
        return
    where = out if is_page else out / "index.html"
    write_page(where, f"Answers of {trained.path.parent.name or trained.path.name}, explained", found)
    if not options.json:
        console.show(
            console.table(None, ("image", "answer", "method", "insertion", "deletion", "randomised", ""), rows)
        )
        for note in explainer.notes:
            console.note(note)
        console.say(f"page: {where}")


def _checked(found: Map) -> tuple[str, ...]:
    checks = found.checks
    if checks is None:
        return ("-", "-", "-", "not checked")
    randomised = "-" if checks.randomised is None else f"{checks.randomised:.2f}"
    return (
        f"{checks.insertion:.3f} (random {checks.random_insertion:.3f})",
        f"{checks.deletion:.3f} (random {checks.random_deletion:.3f})",
        randomised,
        "; ".join(checks.faults) or "faithful",
    )


def _write_picture(path: Path, image: ExplainedImage) -> Path:
    """The picture and its maps beside each other."""
    import io

    import torch

    from bigmodel_cli.core.files import atomic_files
    from bigmodel_cli.insight.explain.image_page import to_image

    to_image(torch.cat([image.picture, *(m.drawing for m in image.maps)], 2)).save(held := io.BytesIO(), "PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write_bytes(path, held.getvalue())
    except OSError as error:
        problem = f"{path.parent}: cannot write: {error.strerror or error}"
        raise MachineError(problem, hint="choose another --out") from None
    return path


class Explainer:
    """Explains images of one model; `notes` says which methods do not apply."""

    def __init__(self, trained: TrainedModel, options: ImageOptions) -> None:
        from bigmodel_cli.core.registry import explanations
        from bigmodel_cli.tasks.answers import answer_of

        self.trained, self.options, self.kind = trained, options, answer_of(trained.task)
        known = sorted(explanations.found.values(), key=lambda f: f.meta["order"])
        self.methods = [explanations.get(name) for name in options.methods or [f.name for f in known]]
        self.notes: list[str] = []
        self._train: TrainingFeatures | None = None

    def explain(self, name: str, raw: Batch) -> ExplainedImage:
        """The answer for the image `raw` (a raw batch of one), and what each method marks.

        Raises:
            InputError: a method that was asked for does not apply, or there is no such class.
        """
        import torch

        from bigmodel_cli.insight.explain.drawing import picture
        from bigmodel_cli.insight.explain.image_page import ExplainedImage

        spec, model = self.trained.task.spec, self.trained.model
        image = self.trained.task.prepare(raw)["image"][0]
        with torch.no_grad():
            logits = model(image[None])
        scores = self.kind.explained(logits, spec)[0]
        names, target = list(spec.classes), self.options.target
        if target is not None and target not in names:
            raise InputError(f"--class {target}: no such class", nearest(target, names))
        answer = int(scores.argmax()) if target is None else names.index(target)
        subject, pixels = self._subject(image, answer)
        maps, checks = self._maps(subject, pixels, logits)
        quantity, value, shown = self.kind.shown(float(scores[answer]))
        values: dict[str, Any] = {"file": name, "class": names[answer], quantity: value}
        text = f"{names[answer]} {shown}"
        others = [i for i in scores.argsort(descending=True).tolist() if i != answer]
        if others:
            _, second, second_shown = self.kind.shown(float(scores[others[0]]))
            values["runner_up"] = {"class": names[others[0]], quantity: second}
            text += f"; runner-up {names[others[0]]} {second_shown}"
        like = self._nearest(image)
        values |= {"methods": checks, "nearest": [caption for _, caption in like]}
        return ExplainedImage(name, text, picture(pixels), maps, like, values)

    def _subject(self, image: Tensor, answer: int) -> tuple[Subject, Tensor]:
        """The subject, and the prepared image in 0..1."""
        import torch

        from bigmodel_cli.insight.explain.subject import Subject

        spec = self.trained.task.spec
        mean, std = (torch.tensor(v or (d,) * spec.channels).view(-1, 1, 1) for v, d in ((spec.mean, 0), (spec.std, 1)))
        black = ((0 - mean) / std).expand_as(image)
        score = _score(self.kind, spec, answer)
        return Subject(self.trained.model, image, answer, score, black, self.options.steps), image * std + mean

    def _maps(self, subject: Subject, pixels: Tensor, logits: Tensor) -> tuple[list[Map], dict[str, Any]]:
        from bigmodel_cli.insight.explain.drawing import overlay
        from bigmodel_cli.insight.explain.faithfulness import Judge
        from bigmodel_cli.insight.explain.image_page import Map

        judge = (
            Judge(subject, _left(self.kind, self.trained.task.spec, subject, logits)) if self.options.checks else None
        )
        maps: list[Map] = []
        values: dict[str, Any] = {}
        for method in self.methods:
            heat = self._heat(method, subject)
            if heat is None:
                continue
            checks = judge.judge(heat, method) if judge is not None else None
            maps.append(Map(method.name, overlay(pixels, heat), checks))
            values[method.name] = checks.to_dict() if checks is not None else {}
        return maps, values

    def _heat(self, method: Entry, subject: Subject) -> Tensor | None:
        """The map of `method`; None where it does not apply and was not asked for by name."""
        try:
            return method(subject)  # type: ignore[no-any-return]
        except InputError as error:
            if self.options.methods:
                raise
            note = f"left out: {error.line}"
            if note not in self.notes:
                self.notes.append(note)
            return None

    def _nearest(self, image: Tensor) -> list[tuple[Tensor, str]]:
        if not self.options.nearest:
            return []
        if self._train is None:
            self._train = TrainingFeatures(self.trained)
            self.notes.append(self._train.note)
        return self._train.nearest(image, self.options.nearest)


def _score(kind: Answer, spec: Any, answer: int) -> Callable[[Tensor], Tensor]:
    return lambda outputs: kind.explained(outputs, spec)[:, answer]


def _left(kind: Answer, spec: Any, subject: Subject, logits: Tensor) -> Callable[[Tensor], Tensor]:
    """What is left of the answer for outputs (S,K): its probability, or how near its value is to that of the image."""
    import torch

    if kind.shown(0.0)[0] == "probability":
        return lambda outputs: subject.score(outputs).exp()
    with torch.no_grad():
        value, nothing = subject.score(torch.cat([logits, subject.model(subject.black[None])]))
    span = (value - nothing).abs().clamp(min=1e-6)
    return lambda outputs: (1 - (subject.score(outputs) - value).abs() / span).clamp(0, 1)


class TrainingFeatures:
    """The features of training images, to find those most like another."""

    def __init__(self, trained: TrainedModel) -> None:
        import torch

        from bigmodel_cli.commands.display.progress import WaitBars
        from bigmodel_cli.data.subset import Subset
        from bigmodel_cli.engine.build.data import load_data, load_split
        from bigmodel_cli.insight.evaluated import evenly
        from bigmodel_cli.insight.explain.neighbours import MOST, features

        self.trained = trained
        recipe = trained.recipe
        with WaitBars():
            self.data = load_data(recipe.data, trained.task.spec, recipe.task)
            source: Source = load_split(self.data, recipe.data, "train")
        whole = len(source)
        self.source = Subset(source, torch.tensor(list(evenly(whole, MOST))))
        task, parts = trained.task.for_data(self.data.spec), []
        for indices in torch.arange(len(self.source)).split(64):
            inputs = task.prepare(self.source.gather(indices))["image"]
            parts.append(features(trained.model, trained.head, inputs))
        self.vectors = torch.cat(parts)
        self.note = f"nearest: among {len(self.source):,} of the {whole:,} training samples"

    def nearest(self, image: Tensor, count: int) -> list[tuple[Tensor, str]]:
        """The pictures of the training images most like the prepared `image`, each with its class and similarity."""
        import torch

        from bigmodel_cli.insight.explain.drawing import picture
        from bigmodel_cli.insight.explain.neighbours import features, nearest

        one = features(self.trained.model, self.trained.head, image[None])[0]
        found = []
        for place, similarity in nearest(one, self.vectors, count):
            batch = self.source.gather(torch.tensor([place]))
            label = batch["label"][0]
            name = self.data.spec.classes[int(label)] if label.dim() == 0 else ""
            found.append(
                (picture(batch["image"][0].float() / 255), f"{name} {similarity:.3f} {self.source.name(place)}")
            )
        return found
