"""The typed recipe: every setting of a run, documented field by field.

A section is either typed here (``train``, ``placement``, ...) or a *component*: a
``name`` and the options that the registered function of that name declares. The
engine's defaults are defined only here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bigmodel_cli.core.registry import Registry, augments, data, losses, methods, models, optimizers, schedules

Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NamedSection(Section):
    """A section whose field `key` names a registered function; the function's options are further fields."""

    model_config = ConfigDict(extra="allow", frozen=True)
    key: ClassVar[str] = "name"
    component_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that belong to the registered function, like its options: naming another function drops them."""

    @property
    def registered_name(self) -> str:
        """The registered name."""
        return str(getattr(self, self.key))

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Component(NamedSection):
    """A registered function and its options, side by side: ``{name: sgd, lr: 0.1}``."""

    name: str = Field(description="the registered name")


class ModelSection(Component):
    component_fields: ClassVar[frozenset[str]] = frozenset({"pruned"})

    init: Literal["default", "kaiming", "xavier"] = Field(
        "default", description="random initialisation; default: the model's own"
    )
    pruned: dict[str, tuple[int | None, int | None]] | None = Field(
        None, description="input and output widths of the layers that compress pruned; null: the model's own widths"
    )
    batchnorm: Literal["own", "group"] = Field(
        "own", description="the model's own BatchNorm layers, or GroupNorm in their place, which private training needs"
    )
    image_size: Annotated[int, Field(ge=8, le=2048)] | None = Field(
        None, description="side of the images that the model takes; null: the starting weights' own, else the data's"
    )


class DataSection(Component):
    task: str | None = Field(
        None,
        description="what the labels are, if not one class a sample: multi_label_classification, regression",
    )
    dir: str | None = Field(None, description="folder of data files; default BIGMODEL_DATA, else ~/.cache/bigmodel")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="fraction of train held out for validation, if the data has no val split"
    )
    split_seed: Seed = Field(0, description="seed of that split, separate from train.seed")
    carve: Literal["hash", "shuffle"] = Field(
        "hash", description="how val is split off: by a hash of each name or group; shuffle: as earlier versions did"
    )
    folds: Annotated[int, Field(ge=2, le=1000)] | None = Field(
        None, description="parts of train, each held out from one of as many runs (cross-validation)"
    )
    hold_out: Positive | None = Field(
        None, description="the part that this run holds out, from 1; null: a run for each"
    )

    @property
    def shown(self) -> str:
        """What a person calls the data: its name, or the last part of the path of data of one's own."""
        path = self.options.get("path")
        return (Path(str(path).rstrip("/")).name if path else "") or self.name

    @property
    def is_cross_validation(self) -> bool:
        """Whether it stands for one run for each fold."""
        return self.folds is not None and self.hold_out is None

    def of_fold(self, fold: int) -> DataSection:
        """The section of one of the runs of cross-validation; of any other run, itself."""
        return self.model_copy(update={"hold_out": fold}) if self.is_cross_validation else self


class TrainSection(Section):
    epochs: Positive = Field(10, description="passes over the train split")
    batch_size: Positive = Field(128, description="samples per optimizer step, over all ranks")
    accumulate: Positive = Field(1, description="micro-batches per step; batch_size stays the same")
    eval_batch_size: Positive = Field(512, description="samples per forward pass in evaluation")
    max_steps: Positive | None = Field(None, description="stop after this many steps; the schedule ends there too")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(None, description="maximum gradient norm")
    skip_nonfinite: Annotated[int, Field(ge=0)] = Field(
        0, description="consecutive steps with NaN or infinity to skip before restoring the last checkpoint"
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="exponential moving average of the weights, which is then evaluated and exported"
    )
    balance: Literal["none", "loss", "sampling"] = Field(
        "none", description="imbalanced classes: weight the training loss by class, or sample every class equally often"
    )
    patience: Positive | None = Field(None, description="stop after this many epochs without a better val metric")
    seed: Seed = Field(0, description="seed of initial weights, sample order and augmentation")
    save_steps: Positive | None = Field(None, description="also save last.pt every this many steps")
    shard_above: Annotated[int, Field(ge=0)] = Field(
        20 * 2**30, description="fsdp: above this checkpoint size in bytes, each process writes its own shard"
    )
    profile: bool = Field(False, description="write trace.json: a Chrome trace of some steps")
    eval_epochs: Positive = Field(1, description="evaluate every this many epochs, and after the last one")


class StartSection(NamedSection):
    """The weights to start from and the fine-tuning method: ``{checkpoint: x.pt, method: lora, rank: 8}``."""

    key: ClassVar[str] = "method"

    checkpoint: str | None = Field(None, description="checkpoint to start from; default random weights")
    pretrained: bool = Field(False, description="start from the weights published for the model (timm:..., tv:...)")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = Field(
        None, description="expected SHA-256 of the checkpoint, verified before the file is parsed"
    )
    preprocessing: Literal["published", "data"] = Field(
        "published",
        description="mean and deviation of other programs' weights: the architecture's, or those of the train split",
    )
    method: str = Field("full", description="fine-tuning method: what is trained, and how")
    statistics: Literal["update", "keep"] = Field(
        "update", description="BatchNorm's mean and deviation: from the batches, or the start's, which suit few samples"
    )

    @property
    def trained(self) -> bool:
        """Whether the run starts from trained weights."""
        return self.checkpoint is not None or self.pretrained


def _device(given: Any) -> str:
    """``cuda:1`` for the ways to write it: ``CUDA:1``, ``gpu:1``, and ``1``, the number of a GPU."""
    name = str(given).strip().lower().replace("gpu", "cuda")
    name = f"cuda:{name}" if name.isascii() and name.isdigit() else name
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name) is None:
        raise ValueError("expected auto, cpu, cuda, cuda:N or mps")
    return name


class PlacementSection(Section):
    device: Annotated[str, BeforeValidator(_device)] = Field("auto", description="auto: CUDA, else MPS, else CPU")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto: measured in runs over 5 s, else bf16 on CUDA, fp32 elsewhere; a value skips all measuring",
    )
    channels_last: bool | Literal["auto"] = Field("auto", description="memory format; auto: measured, else true")
    compile: bool | Literal["auto"] = Field("auto", description="torch.compile; auto: measured in long runs, else off")
    threads: Positive | None = Field(None, description="CPU threads per operation; default: measured, else all cores")
    deterministic: bool = Field(False, description="use torch's deterministic algorithms")


class ParallelSection(Section):
    strategy: Literal["auto", "ddp", "fsdp", "tp"] = Field(
        "auto",
        description="of several processes; auto: ddp if weights, gradients and optimizer fit, else fsdp",
    )
    tensor: Annotated[int, Field(gt=0)] = Field(
        1, description="fsdp: processes over which each matrix is sharded (tensor parallelism); with tp, all"
    )
    timeout: Annotated[float, Field(gt=0)] = Field(
        600, description="seconds without a response after which another process counts as lost"
    )
    sync_batchnorm: bool = Field(False, description="BatchNorm statistics over the batch of all ranks (CUDA)")
    offload: bool = Field(False, description="fsdp: keep weights and optimizer state in host memory")
    unused: bool = Field(False, description="ddp: allow parameters without a gradient in some steps")
    scale_lr: bool = Field(False, description="train.batch_size is per rank: multiply it and the rate by the ranks")


class PrivacySection(Section):
    epsilon: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="train with differential privacy (DP-SGD), spending at most this epsilon; null: without"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="its delta; null: the largest power of ten below one over the number of training samples"
    )
    clip_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="maximum gradient norm of each sample")
    accountant: Literal["prv", "rdp"] = Field(
        "prv", description="of the epsilon spent: prv (numerical, tight) or rdp (Renyi, looser, quick)"
    )
    noise_seed: Seed | None = Field(
        None, description="a known seed of noise and sampling: repeatable, and no protection from who knows it"
    )


class Recipe(Section):
    """Every setting of a run. ``bigmodel recipe schema`` prints it with the options of every component."""

    model: ModelSection
    data: DataSection = DataSection(name="digits")
    augment: Component = Component(name="none")
    loss: Component = Component(name="cross_entropy")
    optimizer: Component = Component(name="adamw")
    schedule: Component = Component(name="one_cycle")
    train: TrainSection = TrainSection()
    start: StartSection = StartSection()
    placement: PlacementSection = PlacementSection()
    parallel: ParallelSection = ParallelSection()
    privacy: PrivacySection = PrivacySection()

    @property
    def task(self) -> str:
        """The name of the task that the model is registered for."""
        return str(models.get(self.model.name).meta["task"])

    def of_fold(self, fold: int) -> Recipe:
        """The recipe of one of the runs of cross-validation; of any other run, itself."""
        return self.model_copy(update={"data": self.data.of_fold(fold)})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for YAML, JSON and the checkpoint."""
        return self.model_dump(mode="json")


def complete(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that some version saved, with the fields that are newer as that version had them.

    Saved recipes name every field, so one that is missing did not exist.
    """
    data = saved.get("data")
    if not isinstance(data, Mapping) or "carve" in data:
        return dict(saved)
    return {**saved, "data": {**data, "carve": "shuffle"}}


COMPONENTS: dict[str, Registry] = {
    "model": models,
    "data": data,
    "augment": augments,
    "loss": losses,
    "optimizer": optimizers,
    "schedule": schedules,
    "start": methods,
}
"""The registry of each section that names a component."""


def section_type(section: str) -> type[NamedSection]:
    """The type of a section that names a component."""
    return cast("type[NamedSection]", Recipe.model_fields[section].annotation)


def data_root(folder: str | Path | None) -> Path:
    """The folder of data files: `folder`, else BIGMODEL_DATA, else ~/.cache/bigmodel."""
    return Path(folder or os.environ.get("BIGMODEL_DATA") or "~/.cache/bigmodel").expanduser()


def cache_root() -> Path:
    """The folder for files that can be recreated: BIGMODEL_CACHE, else ~/.cache/bigmodel."""
    return Path(os.environ.get("BIGMODEL_CACHE") or "~/.cache/bigmodel").expanduser()


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a recipe file, with every registered component and option."""
    root = Recipe.model_json_schema()
    definitions = root["$defs"]
    for section, registry in COMPONENTS.items():
        base = section_type(section)
        typed = base.model_json_schema()["properties"]
        choices = []
        for name in registry.names():
            own = registry.get(name).schema.model_json_schema(ref_template="#/$defs/{model}")
            definitions.update(own.pop("$defs", {}))
            properties = typed | own.get("properties", {}) | {base.key: {"const": name}}
            choices.append({
                "type": "object", "title": name, "description": registry.found[name].summary,
                "properties": properties, "required": [base.key, *own.get("required", [])],
                "additionalProperties": False,
            })  # fmt: skip
        root["properties"][section] = {"oneOf": choices}
    root["required"] = []  # flags may supply what the file omits
    root["title"] = "bigmodel recipe"
    return root
