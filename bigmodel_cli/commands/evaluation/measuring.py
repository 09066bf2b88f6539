"""The outputs of a trained model on a split, for ``eval`` and ``compare``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.core.recipe import Recipe
    from bigmodel_cli.core.types import DataBundle, Source
    from bigmodel_cli.engine.build.load import TrainedModel


@dataclass
class SplitOfData:
    """A split that a model is measured on. `task` is the model's, for this data; `notes` are lines for the reader."""

    trained: TrainedModel
    recipe: Recipe
    bundle: DataBundle
    task: Any
    name: str
    source: Source
    notes: list[str] = field(default_factory=list)

    @property
    def says(self) -> str:
        return "all samples" if self.name == "all" else f"{self.name} split"

    def other(self, name: str) -> SplitOfData:
        """Another split of the same data.

        Raises:
            InputError: the data has no such split.
        """
        from bigmodel_cli.engine.build.data import load_split

        source = load_split(self.bundle, self.recipe.data, name)
        return SplitOfData(self.trained, self.recipe, self.bundle, self.task, name, source)

    def on(self, source: Source) -> SplitOfData:
        """The same split with other samples, such as some of them."""
        return SplitOfData(self.trained, self.recipe, self.bundle, self.task, self.name, source)

    def outputs(self, batch_size: int, tta: bool = False) -> dict[str, Tensor]:
        """The task's outputs, first dimension N; how the model was run is added to `notes`."""
        from bigmodel_cli.engine.device.placement import choose_placement
        from bigmodel_cli.engine.inference.tta import with_flip_tta
        from bigmodel_cli.engine.training.evaluate import collect

        placement = choose_placement(self.recipe.placement)
        model = with_flip_tta(self.trained.model, self.task) if tta else self.trained.model
        low = self.recipe.placement.precision == "auto"
        out, how = collect(placement.model(model), self.task, self.source, placement, batch_size, low)
        self.notes += [how] if how else []
        return out


def open_split(trained: TrainedModel, recipe: Recipe, split: str | None) -> SplitOfData:
    """The split called `split`, or the one to measure where none is named.

    Raises:
        InputError: the data has no such split, or the model is for other data.
    """
    from bigmodel_cli.commands.display.progress import WaitBars
    from bigmodel_cli.engine.build.data import changed_data_note, load_data, load_split, split_to_measure
    from bigmodel_cli.engine.device.placement import choose_placement
    from bigmodel_cli.engine.device.process import configure_process

    configure_process(choose_placement(recipe.placement))
    with WaitBars():
        bundle = load_data(recipe.data, trained.task.spec, recipe.task)
    kind = trained.task.spec.kind
    if bundle.spec.kind != kind:
        raise InputError(f"{recipe.data.shown}: data of kind {bundle.spec.kind}", f"the model is for {kind}")
    task = trained.task.for_data(bundle.spec)  # before any image is decoded: the classes may not match
    saved = trained.meta.get("data") or {}
    chosen, reason = split_to_measure(bundle, recipe.data, saved) if split is None else (split, None)
    with WaitBars():
        source = load_split(bundle, recipe.data, chosen)
    if not len(source):
        raise InputError(f"{recipe.data.shown}: the {chosen} split is empty")
    carved = chosen == "val" and "val" not in bundle.load
    notes = [f"val: the {len(source):,} samples that were split off train"] if carved else []
    notes += filter(None, [reason, changed_data_note(bundle, recipe.data, saved)])
    return SplitOfData(trained, recipe, bundle, task, chosen, source, notes)
